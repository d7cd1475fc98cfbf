// SPDX-License-Identifier: Apache-2.0
// Times a case between probes of the roofs. A repetition's share is its rate over the mean of the
// probes right before and right after it; a row reports medians.
#pragma once

#include <map>

#include "../roofs.hpp"
#include "layers.hpp"

namespace moe::bench {

struct Row {
  Case c;
  double gflops, weight_gbs;  ///< of the touched experts' weights
  std::string roof;           ///< the one that binds: fma, dot or read
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

  /// Reading comes last: it clears the caches. Left out where weights need not be cold.
  template <class S>
  Probe probe(bool cold) {
    constexpr const char* unit = std::is_same_v<S, bf16>    ? "bf16 dot"
                                 : std::is_same_v<S, float> ? "f32 fma"
                                                            : "f64 fma";
    Probe p{roofs_.multiply_add<S>(), 0};
    seen_[unit + std::string(" GFLOP/s")].push_back(1e-9 * p.compute);
    if (cold) {
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

/// What each repetition gave.
struct Series {
  std::vector<double> seconds, flop_rate, byte_rate, compute_share, read_share;

  void add(double time, double flops, double bytes, const Probe& roof) {
    seconds.push_back(time);
    flop_rate.push_back(flops / time);
    byte_rate.push_back(bytes / time);
    compute_share.push_back(flops / time / roof.compute);
    read_share.push_back(roof.read > 0 ? bytes / time / roof.read : 0);
  }
};

template <class Subject>
std::optional<Stages> median_stages(Subject& subject, const Case& c, int repetitions,
                                    Probes& probes) {
  using S = typename Subject::Scalar;
  if constexpr (requires { subject.stages(0); }) {
    std::vector<double> route, plan, combine;
    for (int i = 0; i <= repetitions; ++i) {
      subject.run(i);
      if (c.cold()) {
        probes.template probe<S>(true);
      }
      const Stages s = subject.stages(i);
      if (i > 0) {  // the first one grows the memory
        route.push_back(s.route);
        plan.push_back(s.plan);
        combine.push_back(s.combine);
      }
    }
    return Stages{median(route), median(plan), median(combine)};
  }
  return std::nullopt;
}

template <class Subject>
Row measure(Subject& subject, const Case& c, int repetitions, Probes& probes) {
  using S = typename Subject::Scalar;
  subject.prepare(c);
  const double expert_bytes = static_cast<double>(parameters(c.config).expert * Index{sizeof(S)});
  Series series;
  Probe before = probes.probe<S>(c.cold());
  for (int i = 1; i <= repetitions; ++i) {
    const double time = seconds_of([&] { subject.run(i); });
    const Probe after = probes.probe<S>(c.cold());
    const Work work = subject.work();
    series.add(time, static_cast<double>(Subject::flops(c.config, work).matmul),
               work.distinct_experts * expert_bytes, mean(before, after));
    before = after;
  }
  const double compute = median(series.compute_share), read = median(series.read_share);
  const bool reads = read > compute;  // bytes / bandwidth > FLOPs / peak
  return {.c = c,
          .gflops = 1e-9 * median(series.flop_rate),
          .weight_gbs = 1e-9 * median(series.byte_rate),
          .roof = reads                  ? "read"
                  : c.type == Type::bf16 ? "dot"
                                         : "fma",
          .share = reads ? read : compute,
          .seconds = median(series.seconds),
          .stages = median_stages(subject, c, repetitions, probes)};
}

}  // namespace moe::bench
