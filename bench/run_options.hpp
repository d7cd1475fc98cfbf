// SPDX-License-Identifier: Apache-2.0
// The command line that moe_speed, moe_peers and moe_train_step share, and the rows that they
// write.
#pragma once

#include <CLI/CLI.hpp>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>

#include "shapes.hpp"

namespace moe::bench {

struct RunOptions {
  std::string json, filter;
  int threads = 0;
  int repetitions = smoke() ? 1 : 5;

  /// `names`: what the filter is searched in, as type/pass/shape.
  void add_to(CLI::App& app, const std::string& names) {
    app.add_option("--json", json, "Write the rows to this file")
        ->check([](const std::string& path) {  // known before minutes are measured
          std::error_code unknown;
          const bool was_there = std::filesystem::exists(path, unknown);
          const bool opens = std::ofstream(path, std::ios::app).is_open();
          if (opens && !was_there) {  // it is only there if the run ends well
            std::filesystem::remove(path, unknown);
          }
          return opens ? std::string() : "cannot write " + path;
        });
    app.add_option("--filter", filter, "Regular expression that " + names + " has to contain");
    app.add_option("--threads", threads, "Threads; 0 for OpenMP's default")
        ->check(CLI::NonNegativeNumber);
    app.add_option("--repetitions", repetitions, "Timed runs of each case that count, at least")
        ->check(CLI::PositiveNumber)
        ->capture_default_str();
  }

  /// Writes an array of to_json(row), if a file was asked for. Throws std::runtime_error if it
  /// cannot be written, or if nothing was measured.
  template <class Row>
  void write(const std::vector<Row>& rows) const {
    if (rows.empty()) {
      throw std::runtime_error("no case that this machine can run contains \"" + filter + "\"");
    }
    if (json.empty()) {
      return;
    }
    nlohmann::ordered_json array = nlohmann::ordered_json::array();
    for (const Row& row : rows) {
      array.push_back(to_json(row));
    }
    std::ofstream file(json);
    file << array.dump(1) << '\n';
    file.close();
    if (!file) {
      throw std::runtime_error("cannot write " + json);
    }
  }
};

}  // namespace moe::bench
