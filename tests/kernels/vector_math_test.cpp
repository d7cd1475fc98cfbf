// SPDX-License-Identifier: Apache-2.0
// Tests of the functions of Lanes: their error in ulp against the C library in a wider type, what
// they make of zero, infinity, NaN and subnormal numbers, and the same bits in every lane.
//
// By default every 251st float is tried. All of them take some minutes:
//   MOE_EXHAUSTIVE=1 build/release/tests/test_kernels --gtest_filter='VectorMath/*'
#include "moe/kernels/vector_math.hpp"

#include <gtest/gtest.h>

#include <bit>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "moe/detail/random.hpp"
#include "support/thorough.hpp"

namespace moe::kernels::vector_math_test {
namespace {

// The functions with their bounds on floats and doubles, and the exact value in a wider type W.
struct Exp {
  static constexpr double float_ulp = 1.1, double_ulp = 1.1;
  template <class L>
  static L lanes(const L& x) {
    return exp(x);
  }
  template <class W>
  static W exact(W x) {
    return std::exp(x);
  }
};
struct Sigmoid {
  static constexpr double float_ulp = 2.0, double_ulp = 2.0;
  template <class L>
  static L lanes(const L& x) {
    return sigmoid(x);
  }
  template <class W>
  static W exact(W x) {
    const W e = std::exp(-std::abs(x));
    return (x < 0 ? e : 1) / (1 + e);
  }
};
struct Tanh {
  static constexpr double float_ulp = 1.6, double_ulp = 1.6;
  template <class L>
  static L lanes(const L& x) {
    return tanh(x);
  }
  template <class W>
  static W exact(W x) {
    return std::tanh(x);
  }
};
struct Erf {
  static constexpr double float_ulp = 1.3, double_ulp = 1.5;
  template <class L>
  static L lanes(const L& x) {
    return erf(x);
  }
  template <class W>
  static W exact(W x) {
    return std::erf(x);
  }
};

template <class T>
constexpr T inf = std::numeric_limits<T>::infinity();
template <class T>
constexpr T nan_of = std::numeric_limits<T>::quiet_NaN();
template <class T>
constexpr T smallest = std::numeric_limits<T>::denorm_min();

/// The error of `got` in units of the last place of T at the exact value; inf if one of them is NaN
/// or infinite and the other is not, or if the sign is wrong.
template <class T, class W>
double error_in_ulp(T got, W exact) {
  const T nearest = static_cast<T>(exact);
  if (std::isnan(got) || std::isnan(nearest)) {
    return std::isnan(got) == std::isnan(nearest) ? 0.0 : inf<double>;
  }
  if (std::signbit(got) != std::signbit(nearest) || std::isinf(got) != std::isinf(nearest)) {
    return inf<double>;
  }
  if (got == nearest && (std::isinf(got) || static_cast<W>(got) == exact)) {
    return 0.0;
  }
  using Limits = std::numeric_limits<T>;
  const int exponent = std::max(std::ilogb(exact) + 1, Limits::min_exponent) - Limits::digits;
  return static_cast<double>(std::abs(std::scalbn(static_cast<W>(got) - exact, -exponent)));
}

/// The bound of F, or what the C library keeps, which Lanes of one element use.
template <class F, class T>
constexpr double bound = Lanes<T>::size == 1        ? 2.5
                         : std::is_same_v<T, float> ? F::float_ulp
                                                    : F::double_ulp;

/// The function of one value, in every lane; the lanes must agree.
template <class F, class T>
T of_one(T x) {
  T result[Lanes<T>::size];
  F::lanes(Lanes<T>(x)).store(result);
  for (T lane : result) {
    EXPECT_EQ(std::memcmp(&lane, &result[0], sizeof(T)), 0) << x;
  }
  return result[0];
}

/// The worst error of a stream of values, and where it was.
template <class F, class T, class W>
class Worst {
 public:
  void add(T x) {
    x_[count_++] = x;
    if (count_ < Lanes<T>::size) {
      return;
    }
    count_ = 0;
    T result[Lanes<T>::size];
    F::lanes(Lanes<T>::load(x_)).store(result);
    for (Index i = 0; i < Lanes<T>::size; ++i) {
      const double error = error_in_ulp<T, W>(result[i], F::exact(static_cast<W>(x_[i])));
      if (!(error <= error_)) {
        error_ = error;
        at_ = x_[i];
      }
    }
  }
  double error() const { return error_; }
  T at() const { return at_; }

 private:
  T x_[Lanes<T>::size];
  Index count_ = 0;
  double error_ = 0.0;
  T at_ = T(0);
};

template <class F>
class VectorMath : public ::testing::Test {};
using Functions = ::testing::Types<Exp, Sigmoid, Tanh, Erf>;
TYPED_TEST_SUITE(VectorMath, Functions);

TYPED_TEST(VectorMath, IsWithinTwoUlpOnFloats) {
  const char* exhaustive = std::getenv("MOE_EXHAUSTIVE");
  const bool all = exhaustive != nullptr && std::string(exhaustive) == "1";
  const std::uint64_t stride = all ? 1 : testing::thorough ? 251 : 2003;
  Worst<TypeParam, float, double> worst;
  for (std::uint64_t bits = 0; bits < std::uint64_t(1) << 32; bits += stride) {
    worst.add(std::bit_cast<float>(static_cast<std::uint32_t>(bits)));
  }
  EXPECT_LE(worst.error(), (bound<TypeParam, float>)) << "at " << worst.at();
  std::printf("worst %.4f ulp at %a\n", worst.error(), static_cast<double>(worst.at()));
}

#if LDBL_MANT_DIG > DBL_MANT_DIG  // else there is nothing to compare with
TYPED_TEST(VectorMath, IsWithinTwoUlpOnDoubles) {
  const detail::CounterRandom random(1, 0);
  Worst<TypeParam, double, long double> worst;
  for (std::uint64_t i = 0; i < (testing::thorough ? 100'000 : 10'000); ++i) {
    const double u = random.uniform(2 * i), sign = random.bits(2 * i + 1) % 2 == 0 ? 1.0 : -1.0;
    worst.add(sign * 760.0 * u);                        // the whole range of exp
    worst.add(sign * 8.0 * u);                          // where the others live
    worst.add(sign * 1.5 * u);                          // around the splits
    worst.add(sign * std::exp2(-1074.0 + 1084.0 * u));  // every order of magnitude
  }
  EXPECT_LE(worst.error(), (bound<TypeParam, double>)) << "at " << worst.at();
  std::printf("worst %.4f ulp at %a\n", worst.error(), worst.at());
}
#endif

/// Around every constant at which the code changes its way.
TYPED_TEST(VectorMath, IsWithinTwoUlpAroundTheBoundaries) {
  const auto check = [](auto zero, auto wide) {
    using T = decltype(zero);
    using W = decltype(wide);
    using C = Fit<T>;
    std::vector<T> centres = {
        T(0),          T(1),           C::exp_low,    C::exp_high,    C::tanh_end,   C::erf_end,
        C::tanh_split, C::erf_split,   T(0.34657359), T(1.03972077),  T(0.17328680), T(88.722839),
        T(-87.336544), T(-103.972084), T(709.782712), T(-708.396418), T(-745.133219)};
    for (T centre : centres) {
      for (T x : {centre, -centre}) {
        T below = x, above = x;
        for (int i = 0; i < 100; ++i) {
          for (T z : {below, above}) {
            const W exact = TypeParam::exact(static_cast<W>(z));
            const double error = error_in_ulp<T, W>(of_one<TypeParam>(z), exact);
            EXPECT_LE(error, (bound<TypeParam, T>)) << z;
          }
          below = std::nextafter(below, -inf<T>);
          above = std::nextafter(above, inf<T>);
        }
      }
    }
  };
  check(0.0f, 0.0);
  if (std::numeric_limits<long double>::digits > std::numeric_limits<double>::digits) {
    check(0.0, 0.0L);
  }
}

TYPED_TEST(VectorMath, GivesALaneTheBitsItHasAlone) {
  const auto check = [](auto zero) {
    using T = decltype(zero);
    constexpr Index size = Lanes<T>::size;
    const T values[] = {T(0.1),      T(-0.29), T(0.31),   T(-1.7), T(2.5),  T(-9),
                        T(30),       T(-88.5), T(-103),   T(0),    T(-0.0), inf<T>,
                        smallest<T>, -inf<T>,  nan_of<T>, T(0.77), T(-200)};
    for (T value : values) {
      const T alone = of_one<TypeParam>(value);
      for (T other : values) {
        for (Index lane = 0; lane < size; ++lane) {
          T x[size], result[size];
          std::fill(x, x + size, other);
          x[lane] = value;
          TypeParam::lanes(Lanes<T>::load(x)).store(result);
          EXPECT_EQ(std::memcmp(&result[lane], &alone, sizeof(T)), 0) << value;
        }
      }
    }
  };
  check(0.0f);
  check(0.0);
}

TYPED_TEST(VectorMath, SaturatesAndStaysInRange) {
  for (const float x : {20.0f, 100.0f, 1e10f, std::numeric_limits<float>::max()}) {
    const float y = of_one<TypeParam>(x);
    EXPECT_EQ(y, static_cast<float>(TypeParam::exact(static_cast<double>(x)))) << x;
    const double z = of_one<TypeParam>(static_cast<double>(x) * 1e3);
    EXPECT_EQ(z, TypeParam::exact(static_cast<double>(x) * 1e3)) << x;
  }
  for (float x = 0.0f; x < 12.0f; x += 0.001f) {
    if (!std::is_same_v<TypeParam, Exp>) {
      EXPECT_LE(of_one<TypeParam>(x), 1.0f) << x;
      EXPECT_GE(of_one<TypeParam>(-x), -1.0f) << x;
    }
  }
}

template <class T>
class VectorMathOf : public ::testing::Test {};
using Scalars = ::testing::Types<float, double>;
TYPED_TEST_SUITE(VectorMathOf, Scalars);

template <class T>
bool is_negative_zero(T x) {
  return x == T(0) && std::signbit(x);
}

TYPED_TEST(VectorMathOf, IsRightAtTheEnds) {
  using T = TypeParam;
  const T max = std::numeric_limits<T>::max();
  for (T zero : {T(0), T(-0.0)}) {
    EXPECT_EQ(of_one<Exp>(zero), T(1));
    EXPECT_EQ(of_one<Sigmoid>(zero), T(0.5));
    EXPECT_EQ(of_one<Tanh>(zero), T(0));
    EXPECT_EQ(of_one<Erf>(zero), T(0));
  }
  EXPECT_TRUE(is_negative_zero(of_one<Tanh>(T(-0.0))));
  EXPECT_TRUE(is_negative_zero(of_one<Erf>(T(-0.0))));
  EXPECT_FALSE(std::signbit(of_one<Tanh>(T(0))));
  EXPECT_FALSE(std::signbit(of_one<Erf>(T(0))));
  for (T large : {max, inf<T>}) {
    EXPECT_EQ(of_one<Exp>(large), inf<T>);
    EXPECT_EQ(of_one<Exp>(-large), T(0));
    EXPECT_EQ(of_one<Sigmoid>(large), T(1));
    EXPECT_EQ(of_one<Sigmoid>(-large), T(0));
    EXPECT_EQ(of_one<Tanh>(large), T(1));
    EXPECT_EQ(of_one<Tanh>(-large), T(-1));
    EXPECT_EQ(of_one<Erf>(large), T(1));
    EXPECT_EQ(of_one<Erf>(-large), T(-1));
  }
  EXPECT_FALSE(std::signbit(of_one<Exp>(-inf<T>)));
  EXPECT_FALSE(std::signbit(of_one<Sigmoid>(-inf<T>)));
}

TYPED_TEST(VectorMathOf, HasASigmoidOfScalars) {
  using T = TypeParam;
  EXPECT_EQ(sigmoid(T(0)), T(0.5));
  EXPECT_NEAR(static_cast<double>(sigmoid(T(std::log(3.0)))), 0.75,
              4.0 * std::numeric_limits<T>::epsilon());
  EXPECT_EQ(sigmoid(inf<T>), T(1));
  EXPECT_EQ(sigmoid(-inf<T>), T(0));
  EXPECT_EQ(sigmoid(std::numeric_limits<T>::lowest()), T(0));
  EXPECT_TRUE(std::isnan(sigmoid(nan_of<T>)));
}

TYPED_TEST(VectorMathOf, KeepsNan) {
  const TypeParam nan = nan_of<TypeParam>;
  for (TypeParam x : {nan, -nan, std::numeric_limits<TypeParam>::signaling_NaN()}) {
    EXPECT_TRUE(std::isnan(of_one<Exp>(x)));
    EXPECT_TRUE(std::isnan(of_one<Sigmoid>(x)));
    EXPECT_TRUE(std::isnan(of_one<Tanh>(x)));
    EXPECT_TRUE(std::isnan(of_one<Erf>(x)));
  }
}

TYPED_TEST(VectorMathOf, IsGradualAtTheSmallEnd) {
  using T = TypeParam;
  // exp(-log(2) n) = 2^-n down to the smallest number there is, then 0.
  const int lowest = std::numeric_limits<T>::min_exponent - std::numeric_limits<T>::digits;
  const T ln2 = T(0.693147180559945309);
  EXPECT_EQ(of_one<Exp>(ln2 * T(lowest)), smallest<T>);
  EXPECT_EQ(of_one<Sigmoid>(ln2 * T(lowest)), smallest<T>);
  EXPECT_EQ(of_one<Exp>(ln2 * (T(lowest) - T(1.01))), T(0));
  EXPECT_EQ(of_one<Sigmoid>(ln2 * (T(lowest) - T(1.01))), T(0));
  EXPECT_EQ(of_one<Exp>(smallest<T>), T(1));
  EXPECT_EQ(of_one<Tanh>(smallest<T>), smallest<T>);
  EXPECT_EQ(of_one<Erf>(smallest<T>), smallest<T>);
  EXPECT_EQ(of_one<Tanh>(-smallest<T>), -smallest<T>);
  EXPECT_EQ(of_one<Tanh>(T(1e-20)), T(1e-20));
}

}  // namespace
}  // namespace moe::kernels::vector_math_test
