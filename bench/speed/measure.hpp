// SPDX-License-Identifier: Apache-2.0
// Times a case between probes of the roofs. A repetition's share is its rate over the mean of the
// probes right before and right after it. Where the two disagree, others use the machine and the
// share means little: a row reports the medians of the steadiest repetitions.
#pragma once

#include <algorithm>
#include <map>

#include "../roofs.hpp"
#include "layers.hpp"

namespace moe::bench {

struct Row {
  Case c;
  double gflops, weight_gbs;  ///< of the touched experts' weights
  std::string roof;           ///< the one that binds: fma, dot or read
  double roof_value;          ///< in GFLOP/s, of read in GB/s, at that time: it moves
  double share;
  double seconds;
  std::optional<Stages> stages;
};

/// FLOP/s and bytes/s of the machine at one moment.
struct Probe {
  double compute, read;

  friend Probe mean(const Probe& a, const Probe& b) {
    return {0.5 * (a.compute + b.compute), 0.5 * (a.read + b.read)};
  }
};

/// Probes, and remembers every one.
class Probes {
 public:
  Probes(int threads, bool quick) : roofs_(threads, quick) {}

  /// Computes for at least so many seconds, and reads if so wanted: last, as it clears the caches.
  template <class S>
  Probe probe(bool read, double seconds) {
    constexpr const char* unit = std::is_same_v<S, bf16>    ? "bf16 dot"
                                 : std::is_same_v<S, float> ? "f32 fma"
                                                            : "f64 fma";
    double inverse_rates = 0, rounds = 0;
    const Stopwatch watch;
    do {
      inverse_rates += 1 / roofs_.multiply_add<S>();
      ++rounds;
    } while (watch.seconds() < seconds);
    Probe p{rounds / inverse_rates, 0};
    seen_[unit + std::string(" GFLOP/s")].push_back(1e-9 * p.compute);
    if (read) {
      p.read = roofs_.read();
      seen_["read GB/s"].push_back(1e-9 * p.read);
    }
    return p;
  }

  const std::map<std::string, std::vector<double>>& seen() const { return seen_; }

 private:
  Roofs roofs_;
  std::map<std::string, std::vector<double>> seen_;
};

/// One run of a case.
struct Repetition {
  double seconds, flops, bytes;  ///< bytes of the touched experts' weights
  Probe before, after;

  double flop_rate() const { return flops / seconds; }
  double byte_rate() const { return bytes / seconds; }
  double compute_roof() const { return mean(before, after).compute; }
  double read_roof() const { return mean(before, after).read; }
  double compute_share() const { return flop_rate() / compute_roof(); }
  double read_share() const { return before.read > 0 ? byte_rate() / read_roof() : 0; }
  /// How far the roofs moved meanwhile, as a share of them.
  double drift() const {
    const auto relative = [](double a, double b) {
      return a + b > 0 ? 2 * std::abs(a - b) / (a + b) : 0;
    };
    return std::max(relative(before.compute, after.compute), relative(before.read, after.read));
  }
};

/// Repeats until `count` repetitions are steady, at most 4 * `count` times, and returns the
/// steadiest `count`; of a short case up to ten times as many. A probe takes half as long as the
/// case, so that what disturbs the machine for a moment disturbs both.
template <class Subject>
std::vector<Repetition> repeat(Subject& subject, const Case& c, int count, Probes& probes) {
  using S = typename Subject::Scalar;
  constexpr double steady_drift = 0.03, enough_seconds = 0.5;
  const double expert_bytes = static_cast<double>(parameters(c.config).expert * Index{sizeof(S)});
  std::vector<Repetition> made;
  const double first_seconds = seconds_of([&] { subject.run(0); });
  const double probe_seconds = 0.5 * first_seconds;
  count = std::max(count, static_cast<int>(std::min(10.0 * count, enough_seconds / first_seconds)));
  Probe before = probes.probe<S>(c.may_wait_for_memory(), probe_seconds);
  for (int i = 1, steady = 0; steady < count && i <= 4 * count; ++i) {
    const double time = seconds_of([&] { subject.run(i); });
    const Probe after = probes.probe<S>(c.may_wait_for_memory(), probe_seconds);
    const Work work = subject.work();
    made.push_back({time, static_cast<double>(Subject::flops(c.config, work).matmul),
                    work.distinct_experts * expert_bytes, before, after});
    steady += made.back().drift() < steady_drift ? 1 : 0;
    before = after;
  }
  std::ranges::sort(made, {}, &Repetition::drift);
  made.resize(static_cast<std::size_t>(count));
  return made;
}

template <class Subject>
std::optional<Stages> median_stages(Subject& subject, const Case& c, int repetitions,
                                    Probes& probes) {
  using S = typename Subject::Scalar;
  if constexpr (requires { subject.stages(0); }) {
    std::vector<Stages> runs;
    for (int i = 0; i <= repetitions; ++i) {
      subject.run(i);
      if (c.cold()) {
        probes.template probe<S>(true, 0);
      }
      const Stages s = subject.stages(i);
      if (i > 0) {  // the first one grows the memory
        runs.push_back(s);
      }
    }
    return bench::median_stages(runs);
  }
  return std::nullopt;
}

template <class Subject>
Row measure(Subject& subject, const Case& c, int repetitions, Probes& probes) {
  subject.prepare(c);
  const std::vector<Repetition> made = repeat(subject, c, repetitions, probes);
  const auto median = [&](auto figure) { return median_of(made, figure); };
  const double compute = median(&Repetition::compute_share);
  const double read = median(&Repetition::read_share);
  const bool reads = read > compute;  // bytes / bandwidth > FLOPs / peak
  return {.c = c,
          .gflops = 1e-9 * median(&Repetition::flop_rate),
          .weight_gbs = 1e-9 * median(&Repetition::byte_rate),
          .roof = reads                  ? "read"
                  : c.type == Type::bf16 ? "dot"
                                         : "fma",
          .roof_value = 1e-9 * median(reads ? &Repetition::read_roof : &Repetition::compute_roof),
          .share = reads ? read : compute,
          .seconds = median(&Repetition::seconds),
          .stages = median_stages(subject, c, repetitions, probes)};
}

}  // namespace moe::bench
