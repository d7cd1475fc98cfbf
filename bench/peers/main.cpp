// SPDX-License-Identifier: Apache-2.0
// moe_peers: how many times longer other libraries take for the same layer, in float32 or in the
// type of as many bits. Ours is the packed layer, or MoELayer in training; LibTorch routes by
// itself, the others take our routing.
#include <cstdio>
#include <iostream>
#include <regex>

#include "../run_options.hpp"
#include "compare.hpp"

namespace moe::bench {
namespace {

struct PeerCase {
  MoEConfig config;
  Index tokens;
  bool train;
};

std::vector<PeerCase> peer_cases() {
  if (smoke()) {
    return {{equal_active(32, 64, 4, 2), 40, false},
            {equal_active(32, 64, 4, 2), 1, false},
            {equal_active(32, 64, 4, 2), 40, true}};
  }
  const MoEConfig few = equal_active(1024, 7168, 8, 2), many = equal_active(2048, 8192, 64, 8);
  return {{few, 2048, false}, {few, 128, false},   {few, 2048, true},
          {few, 128, true},   {many, 2048, false}, {many, 128, false},
          {many, 16, false},  {many, 1, false},    {many, 2048, true}};
}

void print(const Comparison& c) {
  std::printf("%-13s %-5s %-8s %-20s %6td %9.2f %9.2f %9.1f %8.2f\n", c.peer.c_str(),
              name(c.type).c_str(), c.pass().c_str(), c.shape.c_str(), c.tokens,
              1e3 * c.times.second_seconds, 1e3 * c.times.first_seconds, c.our_gflops,
              c.times.ratio);
  std::fflush(stdout);
}

/// The cases of one peer, which is made anew for each: gradients begin at zero.
void compare_peer(const PeerKind& kind, const RunOptions& options, int threads,
                  std::vector<Comparison>& rows) {
  const std::regex filter(options.filter);
  std::optional<Subject> subject;
  std::string shape;
  for (const PeerCase& peer_case : peer_cases()) {
    Comparison c{.peer = kind.name,
                 .type = kind.type,
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

}  // namespace
}  // namespace moe::bench

int main(int argc, char** argv) {
  using namespace moe::bench;
  RunOptions options;
  CLI::App app("Other libraries' time for the same layer, over ours.");
  options.add_to(app, "peer/type/pass/shape/tokens");
  CLI11_PARSE(app, argc, argv);
  try {
    const int threads = moe::detail::num_threads(options.threads);
#ifdef _OPENMP
    omp_set_num_threads(threads);  // of the peers
#endif
    std::printf("%-13s %-5s %-8s %-20s %6s %9s %9s %9s %8s\n", "peer", "type", "pass", "shape",
                "tokens", "peer ms", "our ms", "GFLOP/s", "ratio");
    std::vector<Comparison> rows;
    for (const PeerKind& kind : peer_kinds()) {
      compare_peer(kind, options, threads, rows);
    }
    options.write(rows);
  } catch (const std::exception& error) {
    std::cerr << error.what() << '\n';
    return 1;
  }
}
