// SPDX-License-Identifier: Apache-2.0
// Random numbers by counter: a value depends on (seed, stream, position) only, so draws are the
// same for any thread count and need not be stored to be drawn again in backward.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <numbers>

#include "../instruction_set.hpp"
#include "round_to_odd.hpp"

namespace moe::inline MOE_INSTRUCTION_SET::detail {

/// The finaliser of SplitMix64 (Steele, Lea, Flood 2014): every input bit reaches every output bit.
constexpr std::uint64_t mix(std::uint64_t z) {
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ULL;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebULL;
  return z ^ (z >> 31);
}

/// The seed of one part of something with a seed: the parts of seeds that follow each other, as of
/// a model's layers, have nothing in common.
constexpr std::uint64_t seed_of(std::uint64_t whole, std::uint64_t part) {
  return mix(mix(whole) + part);
}

class CounterRandom {
 public:
  /// Streams of one seed are independent of each other.
  constexpr CounterRandom(std::uint64_t seed, std::uint64_t stream)
      : key_(mix(seed + 0x9e3779b97f4a7c15ULL) ^ mix(stream * 0xd1342543de82ef95ULL + 1)) {}

  constexpr std::uint64_t bits(std::uint64_t position) const {
    return mix(key_ + (position + 1) * 0x9e3779b97f4a7c15ULL);
  }

  /// Uniform in [0, 1), 53 bits.
  constexpr double uniform(std::uint64_t position) const {
    return static_cast<double>(bits(position) >> 11) * 0x1.0p-53;
  }

  /// Standard normal (Box and Muller 1958).
  double normal(std::uint64_t position) const {
    const double radius = std::sqrt(-2.0 * std::log(1.0 - uniform(2 * position)));
    return radius * std::cos(2.0 * std::numbers::pi * uniform(2 * position + 1));
  }

 private:
  std::uint64_t key_;
};

/// Fills a weight (out, in) with N(0, 1 / in), rounded once: the same on every platform with the
/// same libm.
template <class M>
void fill_normal(M& weight, std::uint64_t seed, std::uint64_t stream) {
  using T = typename M::Scalar;
  const CounterRandom random(seed, stream);
  const double deviation = weight.size() > 0 ? 1.0 / std::sqrt(double(weight.cols())) : 0.0;
  for (std::ptrdiff_t i = 0; i < weight.size(); ++i) {
    const double value = deviation * random.normal(static_cast<std::uint64_t>(i));
    if constexpr (sizeof(T) < sizeof(float)) {
      weight.data()[i] = static_cast<T>(round_to_odd(value));
    } else {
      weight.data()[i] = static_cast<T>(value);
    }
  }
}

}  // namespace moe::inline MOE_INSTRUCTION_SET::detail
