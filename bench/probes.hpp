// SPDX-License-Identifier: Apache-2.0
// The roofs at one moment, and every one seen so far.
#pragma once

#include <map>
#include <string>

#include "roofs.hpp"
#include "types.hpp"

namespace moe::bench {

/// FLOP/s from registers, those of the register tile on operands in the first cache, and bytes/s of
/// the machine at one moment; 0: not probed.
struct Probe {
  double compute = 0, tile = 0, read = 0;

  friend Probe mean(const Probe& a, const Probe& b) {
    return {0.5 * (a.compute + b.compute), 0.5 * (a.tile + b.tile), 0.5 * (a.read + b.read)};
  }
};

class Probes {
 public:
  Probes(int threads, bool quick) : roofs_(threads, quick) {}

  /// Computes for at least so many seconds, and reads if so wanted: last, as it clears the caches.
  template <class S>
  Probe probe(bool read, double seconds = 0) {
    double inverse_rates = 0, inverse_tile_rates = 0, rounds = 0;
    const Stopwatch watch;
    do {
      inverse_rates += 1 / roofs_.multiply_add<S>();
      inverse_tile_rates += 1 / roofs_.tile<S>();
      ++rounds;
    } while (watch.seconds() < seconds);
    Probe p{rounds / inverse_rates, rounds / inverse_tile_rates, 0};
    seen_[compute_name<S>].push_back(1e-9 * p.compute);
    seen_[tile_name<S>()].push_back(1e-9 * p.tile);
    if (read) {
      p.read = roofs_.read();
      seen_[read_name].push_back(1e-9 * p.read);
    }
    return p;
  }

  /// Every probe, in GFLOP/s or GB/s, by the roof's name.
  const std::map<std::string, std::vector<double>>& seen() const { return seen_; }

  /// The best probes of all.
  template <class S>
  Probe best() const {
    const auto most = [&](const std::string& name) {
      const auto probes = seen_.find(name);
      return probes == seen_.end() ? 0.0 : 1e9 * std::ranges::max(probes->second);
    };
    return {most(compute_name<S>), most(tile_name<S>()), most(read_name)};
  }

 private:
  /// What the tile of fp8 multiplies.
  template <class S>
  using Multiplied = std::conditional_t<std::is_same_v<S, fp8>, Bfloat16Input, S>;
  template <class S>
  static constexpr const char* compute_name =
      std::is_same_v<Multiplied<S>, bf16>    ? "bf16 dot GFLOP/s"
      : std::is_same_v<Multiplied<S>, float> ? "f32 fma GFLOP/s"
      : std::is_same_v<S, double>            ? "f64 fma GFLOP/s"
                                             : "int8 dot GOP/s";
  template <class S>
  static std::string tile_name() {
    constexpr bool of_codes = std::is_same_v<typename PackedMatrix<S>::Input, kernels::CodedInput>;
    return name(type_of<S>()) + " tile " + (of_codes ? "GOP/s" : "GFLOP/s");
  }
  static constexpr const char* read_name = "read GB/s";

  Roofs roofs_;
  std::map<std::string, std::vector<double>> seen_;
};

}  // namespace moe::bench
