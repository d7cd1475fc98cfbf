// SPDX-License-Identifier: Apache-2.0
// moe_peers: how many times longer other libraries take for the same layer, float32. Ours is the
// packed layer, or MoELayer in training; LibTorch routes by itself, the others take our routing.
#include <CLI/CLI.hpp>
#include <cstdio>
#include <fstream>
#include <iostream>
#include <nlohmann/json.hpp>
#include <regex>

#include "compare.hpp"

namespace moe::bench {
namespace {

struct Options {
  std::string json, filter;
  int threads = 0;
  int repetitions = smoke() ? 1 : 5;
};

struct PeerCase {
  MoEConfig config;
  Index tokens;
  bool train;
};

std::vector<PeerCase> peer_cases() {
  if (smoke()) {
    return {{equal_active(32, 64, 4, 2), 40, false}, {equal_active(32, 64, 4, 2), 40, true}};
  }
  const MoEConfig few = equal_active(1024, 7168, 8, 2), many = equal_active(2048, 8192, 64, 8);
  return {{few, 2048, false},  {few, 128, false},  {few, 2048, true}, {few, 128, true},
          {many, 2048, false}, {many, 128, false}, {many, 2048, true}};
}

void print(const Comparison& c) {
  std::printf("%-9s %-8s %-20s %6td %9.2f %9.2f %9.1f %8.2f\n", c.peer.c_str(), c.pass().c_str(),
              c.shape.c_str(), c.tokens, 1e3 * c.peer_seconds, 1e3 * c.our_seconds, c.our_gflops,
              c.ratio);
  std::fflush(stdout);
}

/// The cases of one peer, which is made anew for each: gradients begin at zero.
void compare_peer(const PeerKind& kind, const Options& options, int threads,
                  std::vector<Comparison>& rows) {
  const std::regex filter(options.filter);
  std::optional<Subject> subject;
  std::string shape;
  for (const PeerCase& peer_case : peer_cases()) {
    Comparison c{.peer = kind.name,
                 .shape = shape_name(peer_case.config),
                 .train = peer_case.train,
                 .tokens = peer_case.tokens};
    if ((c.train && !kind.trains) || !std::regex_search(c.name(), filter)) {
      continue;
    }
    if (c.shape != shape) {
      shape = c.shape;
      subject.emplace(peer_case.config, threads);
    }
    const std::unique_ptr<Peer> peer = kind.make(subject->layer(), threads);
    subject->compare(*peer, options.repetitions, c);
    rows.push_back(c);
    print(c);
  }
}

void write_json(const std::vector<Comparison>& rows, const std::string& path) {
  nlohmann::ordered_json json = nlohmann::ordered_json::array();
  for (const Comparison& c : rows) {
    json.push_back({{"peer", c.peer},
                    {"pass", c.pass()},
                    {"shape", c.shape},
                    {"tokens", c.tokens},
                    {"peer_seconds", c.peer_seconds},
                    {"our_seconds", c.our_seconds},
                    {"our_gflops", c.our_gflops},
                    {"ratio", c.ratio}});
  }
  std::ofstream file(path);
  file << json.dump(1) << '\n';
  file.close();
  if (!file) {
    throw std::runtime_error("moe_peers: cannot write " + path);
  }
}

}  // namespace
}  // namespace moe::bench

int main(int argc, char** argv) {
  using namespace moe::bench;
  Options options;
  CLI::App app("Other libraries' time for the same layer, over ours.");
  app.add_option("--json", options.json, "Write the rows to this file");
  app.add_option("--filter", options.filter,
                 "Regular expression that peer/pass/shape/tokens has to contain");
  app.add_option("--threads", options.threads, "Threads; 0 for OpenMP's default")
      ->check(CLI::NonNegativeNumber);
  app.add_option("--repetitions", options.repetitions, "Timed runs of each case")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  CLI11_PARSE(app, argc, argv);
  try {
    const int threads = moe::detail::num_threads(options.threads);
#ifdef _OPENMP
    omp_set_num_threads(threads);  // of the peers
#endif
    std::printf("%-9s %-8s %-20s %6s %9s %9s %9s %8s\n", "peer", "pass", "shape", "tokens",
                "peer ms", "our ms", "GFLOP/s", "ratio");
    std::vector<Comparison> rows;
    for (const PeerKind& kind : peer_kinds()) {
      compare_peer(kind, options, threads, rows);
    }
    if (!options.json.empty()) {
      write_json(rows, options.json);
    }
  } catch (const std::exception& error) {
    std::cerr << error.what() << '\n';
    return 1;
  }
}
