// SPDX-License-Identifier: Apache-2.0
// Times something again and again between probes of the roofs, and keeps the steadiest
// repetitions: where the roofs before and after one disagree, others use the machine, and its time
// means little.
#pragma once

#include "probes.hpp"
#include "timed_layer.hpp"

namespace moe::bench {

struct Repetition {
  int number;  ///< what the body was called with
  double seconds;
  Probe before, after;

  Probe roof() const { return mean(before, after); }
  /// How far the roofs moved meanwhile, as a share of them.
  double drift() const {
    const auto relative = [](double a, double b) {
      return a + b > 0 ? 2 * std::abs(a - b) / (a + b) : 0;
    };
    return std::max(relative(before.compute, after.compute), relative(before.read, after.read));
  }
};

/// How often, and with which probes.
struct Repeat {
  int least, most;  ///< repetitions that count: as many as fit into
  double seconds;   ///< of the body alone
  double patience;  ///< seconds, with the probes, after which no steadier ones are waited for
  bool read;        ///< probes memory, too, which clears the caches

  int count(double body_seconds) const {
    return std::max(least, static_cast<int>(std::min<double>(most, seconds / body_seconds)));
  }
};

/// Calls body(number), body(0) without counting it: it grows the scratch. Goes on until enough
/// repetitions are steady, and at most four times as long; returns the steadiest. A probe takes
/// half as long as the body, so that what disturbs the machine for a moment disturbs both; of more
/// than a quarter of a second it would say no more.
template <class S, class Body>
std::vector<Repetition> repeat(Probes& probes, const Repeat& how, Body&& body) {
  constexpr double steady_drift = 0.03;
  const double first_seconds = seconds_of([&] { body(0); });
  const double probe_seconds = std::min(0.5 * first_seconds, 0.25);
  const int count = how.count(first_seconds);
  const Stopwatch watch;
  std::vector<Repetition> made;
  Probe before = probes.probe<S>(how.read, probe_seconds);
  for (int number = 1, steady = 0; steady < count && number <= 4 * count; ++number) {
    if (number > count && watch.seconds() > how.patience) {
      break;
    }
    const double seconds = seconds_of([&] { body(number); });
    const Probe after = probes.probe<S>(how.read, probe_seconds);
    made.push_back({number, seconds, before, after});
    steady += made.back().drift() < steady_drift ? 1 : 0;
    before = after;
  }
  std::ranges::sort(made, {}, &Repetition::drift);
  made.resize(static_cast<std::size_t>(count));
  return made;
}

/// The median of each step over `count` calls of steps(number), between calls of rest(); one call
/// more, the first, grows the memory.
template <class Rest, class Steps>
Stages repeat_stages(int count, Rest&& rest, Steps&& steps) {
  std::vector<Stages> runs;
  for (int number = 0; number <= count; ++number) {
    rest();
    runs.push_back(steps(number));
  }
  runs.erase(runs.begin());
  return {median_of(runs, &Stages::route), median_of(runs, &Stages::plan),
          median_of(runs, &Stages::experts), median_of(runs, &Stages::combine)};
}

/// Medians of two that ran in turn, so that what disturbs the machine disturbs both.
struct InTurn {
  double first_seconds, second_seconds;
  double ratio;  ///< second / first, the median of the pairs
};

/// rest() goes before each.
template <class Rest, class First, class Second>
InTurn repeat_in_turn(int count, Rest&& rest, First&& first, Second&& second) {
  std::vector<double> first_seconds, second_seconds, ratios;
  for (int i = 0; i < count; ++i) {
    rest();
    first_seconds.push_back(seconds_of(first));
    rest();
    second_seconds.push_back(seconds_of(second));
    ratios.push_back(second_seconds.back() / first_seconds.back());
  }
  return {median(first_seconds), median(second_seconds), median(ratios)};
}

}  // namespace moe::bench
