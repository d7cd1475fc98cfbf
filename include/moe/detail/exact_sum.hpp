// SPDX-License-Identifier: Apache-2.0
// ExactSums: sums of floating-point numbers without rounding, to compare what differs by less than
// any sum of floats can tell. A sum is an integer in steps of the lowest digit that any of the
// numbers has, as long as it has to be (a long accumulator, Kulisch and Miranker 1986).
#pragma once

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <limits>

#include "../instruction_set.hpp"

namespace moe::inline MOE_INSTRUCTION_SET::detail {

/// First admit() of all numbers, then reserve(), then sums in the caller's memory: limbs() limbs,
/// the lowest first, in two's complement. Numbers are finite.
class ExactSums {
 public:
  /// Of the size of an index, so that memory of indices serves.
  using Limb = std::size_t;
  static constexpr int limb_bits = std::numeric_limits<Limb>::digits;
  /// The most limbs that any numbers need: all digits of double, and a headroom.
  static constexpr std::ptrdiff_t most_limbs = (2046 + 53 + 64) / limb_bits + 1;

  /// Of a number that is to be added, or its negative.
  void admit(double number) {
    const Digits d = digits_of(number);
    if (d.digits != 0) {
      lowest_ = (std::min)(lowest_, d.place + std::countr_zero(d.digits));
      highest_ = (std::max)(highest_, d.place + static_cast<int>(std::bit_width(d.digits)));
    }
  }
  /// Makes room for sums of so many of the admitted numbers, fewer than 2^60.
  void reserve(std::uint64_t count) {
    const int digits = highest_ > lowest_ ? highest_ - lowest_ : 0;
    limbs_ = (digits + static_cast<int>(std::bit_width(count)) + 1) / limb_bits + 1;
  }
  std::ptrdiff_t limbs() const { return limbs_; }

  void clear(Limb* sum) const { std::fill_n(sum, limbs_, Limb{0}); }
  void copy(const Limb* from, Limb* to) const { std::copy_n(from, limbs_, to); }

  /// sum += number, one of those admitted, or -= it.
  void add(double number, bool negative, Limb* sum) const {
    Digits d = digits_of(number);
    if (d.digits == 0) {
      return;
    }
    int shift = d.place - lowest_;
    if (shift < 0) {
      d.digits >>= -shift;  // zeros: the lowest digit of all is not below `lowest_`
      shift = 0;
    }
    std::ptrdiff_t at = shift / limb_bits;
    shift %= limb_bits;
    const bool subtract = d.negative != negative;
    for (Limb carry = 0; at < limbs_ && (d.digits != 0 || carry != 0); ++at) {
      const Limb part = (d.digits << shift) & ~Limb{0};
      d.digits = (d.digits >> 1) >> (limb_bits - 1 - shift);
      shift = 0;
      const Limb before = sum[at], rest = subtract ? before - part : before + part;
      sum[at] = subtract ? rest - carry : rest + carry;
      const bool over = subtract ? before < part || rest < carry : rest < part || sum[at] < carry;
      carry = over ? 1 : 0;
    }
  }

  bool is_negative(const Limb* sum) const { return (sum[limbs_ - 1] >> (limb_bits - 1)) != 0; }
  bool is_less(const Limb* a, const Limb* b) const {
    if (is_negative(a) != is_negative(b)) {
      return is_negative(a);
    }
    for (std::ptrdiff_t at = limbs_; at-- > 0;) {
      if (a[at] != b[at]) {
        return a[at] < b[at];
      }
    }
    return false;
  }

 private:
  static_assert(std::numeric_limits<double>::is_iec559 && sizeof(double) == 8);

  /// A number is digits * 2^(place - 1074).
  struct Digits {
    std::uint64_t digits;
    int place;
    bool negative;
  };
  static Digits digits_of(double number) {
    const auto bits = std::bit_cast<std::uint64_t>(number);
    const std::uint64_t fraction = bits & ((std::uint64_t{1} << 52) - 1);
    const int exponent = static_cast<int>(bits >> 52 & 0x7ff);
    return exponent == 0 ? Digits{fraction, 0, bits >> 63 != 0}
                         : Digits{fraction | std::uint64_t{1} << 52, exponent - 1, bits >> 63 != 0};
  }

  int lowest_ = (std::numeric_limits<int>::max)(), highest_ = (std::numeric_limits<int>::min)();
  std::ptrdiff_t limbs_ = 1;
};

}  // namespace moe::inline MOE_INSTRUCTION_SET::detail
