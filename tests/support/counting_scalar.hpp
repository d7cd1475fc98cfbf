// SPDX-License-Identifier: Apache-2.0
// A double that counts what is done to it, by the rule of moe/cost.hpp: each + - * / and each call
// of exp, erf, tanh, log or sqrt is one FLOP; comparisons, signs, copies and conversions are none.
// A layer instantiated with it performs its FLOPs and reports them. Needs no GoogleTest.
#pragma once

#include <cmath>
#include <cstdint>

#include "moe/types.hpp"

namespace moe::testing {

class Counting {
 public:
  /// FLOPs of this thread so far.
  static std::int64_t& flops() {
    static thread_local std::int64_t count = 0;
    return count;
  }

  Counting() = default;
  template <class N>
  requires std::is_arithmetic_v<N>
  explicit Counting(N value) : value_(static_cast<double>(value)) {}

  explicit operator double() const { return value_; }
  explicit operator float() const { return static_cast<float>(value_); }

  Counting& operator+=(Counting o) { return *this = *this + o; }
  Counting& operator-=(Counting o) { return *this = *this - o; }
  Counting& operator*=(Counting o) { return *this = *this * o; }
  Counting& operator/=(Counting o) { return *this = *this / o; }

  friend Counting operator+(Counting a, Counting b) { return counted(a.value_ + b.value_); }
  friend Counting operator-(Counting a, Counting b) { return counted(a.value_ - b.value_); }
  friend Counting operator*(Counting a, Counting b) { return counted(a.value_ * b.value_); }
  friend Counting operator/(Counting a, Counting b) { return counted(a.value_ / b.value_); }
  friend Counting exp(Counting a) { return counted(std::exp(a.value_)); }
  friend Counting erf(Counting a) { return counted(std::erf(a.value_)); }
  friend Counting erfc(Counting a) { return counted(std::erfc(a.value_)); }
  friend Counting tanh(Counting a) { return counted(std::tanh(a.value_)); }
  friend Counting log(Counting a) { return counted(std::log(a.value_)); }
  friend Counting log1p(Counting a) { return counted(std::log1p(a.value_)); }
  friend Counting sqrt(Counting a) { return counted(std::sqrt(a.value_)); }

  friend Counting operator-(Counting a) { return Counting(-a.value_); }
  friend Counting abs(Counting a) { return Counting(std::abs(a.value_)); }
  friend bool isnan(Counting a) { return std::isnan(a.value_); }
  friend bool isfinite(Counting a) { return std::isfinite(a.value_); }
  friend bool operator==(Counting a, Counting b) { return moe::detail::equals(a.value_, b.value_); }
  friend bool operator!=(Counting a, Counting b) {
    return !moe::detail::equals(a.value_, b.value_);
  }
  friend bool operator<(Counting a, Counting b) { return a.value_ < b.value_; }
  friend bool operator>(Counting a, Counting b) { return a.value_ > b.value_; }
  friend bool operator<=(Counting a, Counting b) { return a.value_ <= b.value_; }
  friend bool operator>=(Counting a, Counting b) { return a.value_ >= b.value_; }

 private:
  static Counting counted(double result) {
    ++flops();
    return Counting(result);
  }

  double value_ = 0.0;
};

/// FLOPs that f() does in this thread.
template <class F>
std::int64_t count_flops(F&& f) {
  const std::int64_t before = Counting::flops();
  f();
  return Counting::flops() - before;
}

}  // namespace moe::testing

template <>
struct Eigen::NumTraits<moe::testing::Counting> : Eigen::NumTraits<double> {
  using Real = moe::testing::Counting;
  using NonInteger = Real;
  using Nested = Real;
  using Literal = Real;
  enum { RequireInitialization = 1, ReadCost = 1, AddCost = 1, MulCost = 1 };

  static Real epsilon() { return Real(NumTraits<double>::epsilon()); }
  static Real dummy_precision() { return Real(NumTraits<double>::dummy_precision()); }
  static Real highest() { return Real(NumTraits<double>::highest()); }
  static Real lowest() { return Real(NumTraits<double>::lowest()); }
  static Real infinity() { return Real(NumTraits<double>::infinity()); }
  static Real quiet_NaN() { return Real(NumTraits<double>::quiet_NaN()); }
};
