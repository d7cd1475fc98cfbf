// SPDX-License-Identifier: Apache-2.0
// exp, sigmoid, tanh and erf of Lanes, and the sigmoid of scalars. Eigen's own are not used: they
// differ between the lanes and the end of a row, and give 2.9e-39 for exp(-inf).
//
// All stand on one reduction (Cody and Waite 1980): x = n ln2 + r, |r| <= ln2 / 2, with ln2 in two
// parts of which the first times n is exact, and p(r) = exp(r) - 1 by a polynomial. Polynomials are
// minimax fits of ours (Remez exchange in 50 digits); their error is below 0.25 ulp of what
// they fit. Worst error against the exact value, over every float and on 10^8 doubles:
// see tests/kernels/vector_math_test.cpp.
#pragma once

#include <cmath>
#include <limits>

#include "lanes.hpp"

namespace moe::inline MOE_INSTRUCTION_SET::kernels {

/// Constants and polynomials, lowest power first.
template <class T>
struct Fit;

template <>
struct Fit<float> {
  static constexpr float log2e = 0x1.715476p+0f, ln2_high = 0x1.62e4p-1f, ln2_low = 0x1.7f7d1cp-20f;
  // exp is 0 below exp_low and inf above exp_high; tanh and erf are 1 from their ends on.
  static constexpr float exp_low = -104, exp_high = 89, tanh_end = 10, erf_end = 3.95f;
  static constexpr float tanh_split = 0.3f, erf_split = 0.8f;
  /// (exp(r) - 1 - r) / r^2, |r| <= ln2 / 2
  static constexpr float exp[] = {0x1.fffffep-2f, 0x1.5554bp-3f, 0x1.555674p-5f, 0x1.122776p-7f,
                                  0x1.6bec0cp-10f};
  /// (tanh(sqrt(t)) / sqrt(t) - 1) / t, t <= tanh_split^2
  static constexpr float tanh[] = {-0x1.555552p-2f, 0x1.110ef6p-3f, -0x1.b8fdfcp-5f,
                                   0x1.483c02p-6f};
  /// erf(sqrt(t)) / sqrt(t) - 1, t <= erf_split^2
  static constexpr float erf[] = {0x1.06eba8p-3f,  -0x1.81272ep-2f, 0x1.ce2804p-4f,
                                  -0x1.b76e9ep-6f, 0x1.4d4258p-8f,  -0x1.56a27ep-11f};
  /// log(1 - erf(a)), erf_split <= a <= erf_end; weighted by 1 - erf(a)
  static constexpr float log_erfc[] = {-0x1.14cdb8p-14f, -0x1.20d39ap+0f, -0x1.45bee8p-1f,
                                       -0x1.ad413ap-4f,  0x1.73328ap-6f,  -0x1.9d58dp-9f,
                                       0x1.b30e9ep-13f};
};

template <>
struct Fit<double> {
  static constexpr double log2e = 0x1.71547652b82fep+0, ln2_high = 0x1.62e42fefa38p-1,
                          ln2_low = 0x1.ef35793c7673p-45;
  static constexpr double exp_low = -746, exp_high = 710, tanh_end = 20, erf_end = 5.95;
  static constexpr double tanh_split = 0.3, erf_split = 1;
  static constexpr double exp[] = {
      0x1.0000000000005p-1,  0x1.5555555555539p-3,  0x1.55555555522b8p-5,  0x1.1111111118fb3p-7,
      0x1.6c16c17edb9ecp-10, 0x1.a01a017511e5cp-13, 0x1.a019a76f5e647p-16, 0x1.71de880d3183ep-19,
      0x1.28a1dfe9a3372p-22, 0x1.ae6b9e1cf3d05p-26};
  static constexpr double tanh[] = {
      -0x1.5555555555548p-2, 0x1.111111110ebc1p-3, -0x1.ba1ba1b59c64dp-5,  0x1.664f466945fafp-6,
      -0x1.226daa47ed535p-7, 0x1.d6a9bb276837dp-9, -0x1.79ebce68ef667p-10, 0x1.076e314f594e8p-11};
  static constexpr double erf[] = {
      0x1.06eba8214db68p-3,  -0x1.812746b0379bdp-2,  0x1.ce2f21a040d16p-4,  -0x1.b82ce311fa95bp-6,
      0x1.565bccf92b61dp-8,  -0x1.c02db03ddd756p-11, 0x1.f9a2baa97f93cp-14, -0x1.f4ca4d75d6f28p-17,
      0x1.b97fd41176692p-20, -0x1.5c07281742b57p-23, 0x1.d71b15fc56c64p-27, -0x1.abae5ad607f3p-31};
  static constexpr double log_erfc[] = {
      -0x1.138a9610d9b01p-21, -0x1.20dd1e3053bb1p+0,  -0x1.45f635a4f36d3p-1,
      -0x1.a4ab2841e3c7bp-4,  0x1.3719a1181ab36p-6,   0x1.b19f0a7724ee2p-12,
      -0x1.f70a05d3d106bp-10, 0x1.954bab6836cap-11,   -0x1.1e5ed6e540ebap-13,
      -0x1.4792f5209930bp-16, 0x1.7a0da0d4b745ep-16,  -0x1.1fdd81692c3bp-17,
      0x1.1bda3f0d604cbp-19,  -0x1.8cd4b67a4f59fp-22, 0x1.8a93c4e62d8e7p-25,
      -0x1.0b54752686f22p-28, 0x1.bc4bedefa75bdp-33,  -0x1.565dd8f66b8dep-38};
};

/// c[0] + c[1] x + ...; recursion, as GCC below -O3 does not unroll the loop.
template <int First = 0, class T, std::size_t N>
Lanes<T> polynomial(const Lanes<T>& x, const T (&c)[N]) {
  if constexpr (First + 1 == N) {
    return Lanes<T>(c[First]);
  } else {
    return madd(polynomial<First + 1>(x, c), x, Lanes<T>(c[First]));
  }
}

/// The nearest whole number of |x| <= 2^20: adding 1.5 * 2^(digits - 1) leaves no place for a
/// fraction. `offset`, a small whole number, stays in the sum's lowest bits.
template <class T>
Lanes<T> rounding(T offset) {
  constexpr int digits = std::numeric_limits<T>::digits;
  return Lanes<T>(T(1.5) * static_cast<T>(std::int64_t(1) << (digits - 1)) + offset);
}

#if defined(__GNUC__) && !defined(__clang__)
// A false alarm of GCC 12: that a vector type loses its alignment as a template argument.
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wignored-attributes"
#endif

/// 2^n for whole n that are exponents of normal numbers.
template <class T>
Lanes<T> power_of_two(const Lanes<T>& n) {
  namespace ei = Eigen::internal;
  using Packet = typename Lanes<T>::Packet;
  if constexpr (requires { typename ei::unpacket_traits<Packet>::integer_packet; }) {
    // The lowest bits of the sum are the biased exponent: shift them into their place.
    using Integers = typename ei::unpacket_traits<Packet>::integer_packet;
    constexpr int digits = std::numeric_limits<T>::digits;
    const Lanes<T> sum = n + rounding(T(std::numeric_limits<T>::max_exponent - 1));
    const Integers bits = ei::preinterpret<Integers>(sum.packet);
    return Lanes<T>::of(ei::preinterpret<Packet>(ei::plogical_shift_left<digits - 1>(bits)));
  } else {
    return Lanes<T>::of(ei::pldexp(Lanes<T>(1).packet, n.packet));
  }
}

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic pop
#endif

/// 2^n for whole n down to subnormal numbers, as two factors: 2^h and 2^(n - h), h = floor(n / 2).
template <class T>
struct TwoFactors {
  Lanes<T> first, second;

  explicit TwoFactors(const Lanes<T>& n) {
    const Lanes<T> half = madd(n, Lanes<T>(0.5), Lanes<T>(-0.25)) + rounding(T(0)) - rounding(T(0));
    const Lanes<T> odd = madd(half, Lanes<T>(-2), n);  // 0 or 1
    first = power_of_two(half);
    second = madd(first, odd, first);
  }
};

/// x = n ln2 + r: n, and exp(r) - 1.
template <class T>
struct Reduced {
  Lanes<T> n, expm1;
};

template <class T>
EIGEN_ALWAYS_INLINE Reduced<T> reduce(const Lanes<T>& x) {
  const Lanes<T> n = madd(x, Lanes<T>(Fit<T>::log2e), rounding(T(0))) - rounding(T(0));
  Lanes<T> r = madd(n, Lanes<T>(-Fit<T>::ln2_high), x);
  r = madd(n, Lanes<T>(-Fit<T>::ln2_low), r);
  return {n, madd(r * r, polynomial(r, Fit<T>::exp), r)};
}

/// exp(x): 0 for -inf, inf for inf, subnormal where it should be.
template <class T>
Lanes<T> exp(const Lanes<T>& x) {
  if constexpr (Lanes<T>::size == 1) {
    return Lanes<T>(std::exp(x.packet));
  } else {
    const Reduced<T> reduced = reduce(x);
    const TwoFactors<T> power(reduced.n);  // 2^n may overflow where the result does not
    const Lanes<T> y = (Lanes<T>(1) + reduced.expm1) * power.first * power.second;
    const Lanes<T> above_low = where(x < Lanes<T>(Fit<T>::exp_low), Lanes<T>(0), y);
    return where(x > Lanes<T>(Fit<T>::exp_high), Lanes<T>(std::numeric_limits<T>::infinity()),
                 above_low);
  }
}

/// 1 / (1 + exp(-z)). The exponent is never positive, so that a small result is not lost where
/// exp(-z) overflows.
template <class T>
T sigmoid(const T& z) {
  using std::exp;
  const T e = exp(where(z < T(0), z, -z));
  return where(z < T(0), e, T(1)) / (T(1) + e);
}

/// The sigmoid of Lanes: q = 1 / (1 + exp(|x|)) for negative x, else 1 - q. With |x| = n ln2 + r
/// and w = 2^-n, q = w / (w + exp(r)), which rounds once less than exp and 1 + exp, and cannot
/// overflow. Both sides of the fraction are scaled: then w is a normal number where q is none.
template <class T>
EIGEN_ALWAYS_INLINE Lanes<T> sigmoid(const Lanes<T>& x) {
  if constexpr (Lanes<T>::size == 1) {
    return Lanes<T>(sigmoid(x.packet));
  } else {
    constexpr int digits = std::numeric_limits<T>::digits + 1;
    const Lanes<T> scale(static_cast<T>(std::int64_t(1) << digits));
    const Reduced<T> reduced = reduce(smaller(abs(x), Lanes<T>(-Fit<T>::exp_low)));
    const Lanes<T> w = power_of_two(Lanes<T>(digits) - reduced.n);
    const Lanes<T> q = w / (madd(reduced.expm1, scale, w) + scale);
    // A NaN goes through as it is: its sign would depend on how this copy of the code is compiled.
    return where(x < Lanes<T>(0), q, where(x >= Lanes<T>(0), Lanes<T>(1) - q, x));
  }
}

/// tanh(x): an odd polynomial near 0, where e + 2 would lose digits of e; else e / (e + 2),
/// e = exp(2 |x|) - 1.
template <class T>
Lanes<T> tanh(const Lanes<T>& x) {
  if constexpr (Lanes<T>::size == 1) {
    return Lanes<T>(std::tanh(x.packet));
  } else {
    const Lanes<T> a = abs(x), end(Fit<T>::tanh_end);
    const Lanes<T> t = a * a, central = madd(a, t * polynomial(t, Fit<T>::tanh), a);
    const Lanes<T> b = where(a > end, end, a);
    const Reduced<T> reduced = reduce(b + b);
    const Lanes<T> power = power_of_two(reduced.n);
    const Lanes<T> e = madd(power, reduced.expm1, power - Lanes<T>(1));
    const Lanes<T> tail = e / (e + Lanes<T>(2));
    return copysign(where(a < Lanes<T>(Fit<T>::tanh_split), central, tail), x);
  }
}

/// erf(x): an odd polynomial near 0, else 1 - exp(log(erfc)).
template <class T>
Lanes<T> erf(const Lanes<T>& x) {
  if constexpr (Lanes<T>::size == 1) {
    return Lanes<T>(std::erf(x.packet));
  } else {
    const Lanes<T> a = abs(x), end(Fit<T>::erf_end);
    const Lanes<T> central = madd(a, polynomial(a * a, Fit<T>::erf), a);
    const Reduced<T> reduced = reduce(polynomial(where(a > end, end, a), Fit<T>::log_erfc));
    const Lanes<T> power = power_of_two(reduced.n);
    const Lanes<T> tail = madd(-power, reduced.expm1, Lanes<T>(1) - power);
    return copysign(where(a < Lanes<T>(Fit<T>::erf_split), central, tail), x);
  }
}

}  // namespace moe::inline MOE_INSTRUCTION_SET::kernels
