// SPDX-License-Identifier: Apache-2.0
// Other libraries' times for the same layer: what moe_peers wrote, where it was run.
#pragma once

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "results.hpp"

namespace moe::report {

/// Nothing if there is no such file. Throws nlohmann::json::exception if it is not of moe_peers.
inline std::vector<PeerRow> read_peers(const std::filesystem::path& path) {
  std::vector<PeerRow> rows;
  std::ifstream file(path);
  if (file) {
    for (const auto& row : nlohmann::json::parse(file)) {
      rows.push_back({row.at("peer"), row.at("pass"), row.at("shape"), row.at("tokens"),
                      row.at("peer_seconds"), row.at("our_seconds"), row.at("ratio")});
    }
  }
  return rows;
}

}  // namespace moe::report
