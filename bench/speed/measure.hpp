// SPDX-License-Identifier: Apache-2.0
// Measures a case: what a repetition reached, as a share of the roofs right before and after it.
#pragma once

#include "../repeat.hpp"
#include "layers.hpp"

namespace moe::bench {

struct Row {
  Case c;
  double gflops, weight_gbs;  ///< of the touched experts' weights
  std::string roof;           ///< the one that binds: fma, dot or read
  double roof_value;          ///< in GFLOP/s, of read in GB/s, at that time: it moves
  double share;
  double tile_share;  ///< of the register tile of the storage, on operands in the first cache
  std::optional<Stages> stages;
};

/// A block of integers has its scales with it.
template <class S>
constexpr double bytes_of_weight() {
  if constexpr (Real<S>) {
    return sizeof(S);
  } else if constexpr (std::is_same_v<S, fp8>) {
    using Block = typename PackedMatrix<S>::Stored;
    return static_cast<double>(sizeof(Block)) / static_cast<double>(sizeof(Block::code));
  } else {
    using Block = typename PackedMatrix<S>::Weight;
    return static_cast<double>(sizeof(Block)) / static_cast<double>(Block::cols * Block::depth);
  }
}

/// Rates of one repetition.
struct Reached {
  double flops, bytes;  ///< per second; bytes of the touched experts' weights
  Probe roof;

  double compute_share() const { return flops / roof.compute; }
  double tile_share() const { return flops / roof.tile; }
  double read_share() const { return roof.read > 0 ? bytes / roof.read : 0; }
};

template <class Subject>
Row measure(Subject& subject, const Case& c, int repetitions, Probes& probes) {
  using S = typename Subject::Scalar;
  const double expert_bytes =
      static_cast<double>(parameters(c.config).expert) * bytes_of_weight<S>();
  subject.prepare(c);
  std::vector<Work> work;
  const Repeat how{.least = repetitions,
                   .most = 10 * repetitions,
                   .seconds = 0.5,
                   .patience = 10.0,
                   .read = c.may_wait_for_memory()};
  const auto made = repeat<S>(probes, how, [&](int number) {
    subject.run(number);
    work.push_back(subject.work());
  });
  std::vector<Reached> reached;
  for (const Repetition& r : made) {
    const Work& w = work[static_cast<std::size_t>(r.number)];
    reached.push_back({Subject::flops(c.config, w).matmul / r.seconds,
                       w.distinct_experts * expert_bytes / r.seconds, r.roof()});
  }
  const auto median = [&](auto figure) { return median_of(reached, figure); };
  const double compute = median(&Reached::compute_share), read = median(&Reached::read_share);
  const bool reads = read > compute;  // bytes / bandwidth > FLOPs / peak
  Row row{.c = c,
          .gflops = 1e-9 * median(&Reached::flops),
          .weight_gbs = 1e-9 * median(&Reached::bytes),
          .roof = reads                               ? "read"
                  : c.type == Type::bf16 || c.coded() ? "dot"
                                                      : "fma",
          .roof_value =
              1e-9 * median([&](const Reached& r) { return reads ? r.roof.read : r.roof.compute; }),
          .share = reads ? read : compute,
          .tile_share = median(&Reached::tile_share),
          .stages = {}};
  if constexpr (requires { subject.stages(0); }) {
    const auto rest = [&] { c.cold() ? void(probes.probe<S>(true)) : subject.run(0); };
    row.stages =
        repeat_stages(repetitions, rest, [&](int number) { return subject.stages(number); });
  }
  return row;
}

}  // namespace moe::bench
