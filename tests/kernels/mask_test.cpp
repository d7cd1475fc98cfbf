// SPDX-License-Identifier: Apache-2.0
// Comparisons of registers and choices by them, lane by lane against those of scalars.
#include "moe/kernels/mask.hpp"

#include <gtest/gtest.h>

#include <bit>
#include <cstdint>
#include <limits>
#include <type_traits>

namespace moe::kernels::mask_test {
namespace {

template <class T>
class MaskOf : public ::testing::Test {
 protected:
  using Packet = typename Mask<T>::Packet;
  using Bits = std::conditional_t<sizeof(T) == 4, std::uint32_t, std::uint64_t>;
  static constexpr int size = Eigen::internal::unpacket_traits<Packet>::size;

  /// What a mask chooses is what `expected(a, b)` says, for every pair of the values.
  template <class Compare, class Expected>
  void expect_same(Compare&& compare, Expected&& expected) {
    const T inf = std::numeric_limits<T>::infinity(), nan = std::numeric_limits<T>::quiet_NaN();
    const T values[] = {T(0), T(-0.0), T(1), T(-1),
                        inf,  -inf,    nan,  std::numeric_limits<T>::denorm_min()};
    constexpr int count = 8;
    for (int first = 0; first < count; ++first) {
      for (int step = 0; step < count; ++step) {
        T a[size], b[size], got[size];
        for (int i = 0; i < size; ++i) {
          a[i] = values[(first + i) % count];
          b[i] = values[(first + i * step) % count];
        }
        const Packet pa = Eigen::internal::ploadu<Packet>(a);
        const Packet pb = Eigen::internal::ploadu<Packet>(b);
        const Packet yes = Eigen::internal::pset1<Packet>(nan), no = pb;
        Eigen::internal::pstoreu(got, compare(pa, pb).select(yes, no));
        for (int i = 0; i < size; ++i) {
          const T want = expected(a[i], b[i]) ? nan : b[i];
          ASSERT_EQ(std::bit_cast<Bits>(got[i]), std::bit_cast<Bits>(want))
              << a[i] << " and " << b[i];
        }
      }
    }
  }
};
using Scalars = ::testing::Types<float, double>;
TYPED_TEST_SUITE(MaskOf, Scalars);

TYPED_TEST(MaskOf, ComparesAsScalarsDoAlsoNanAndZeros) {
  using M = Mask<TypeParam>;
  this->expect_same(M::equal, [](TypeParam a, TypeParam b) { return a == b; });
  this->expect_same(M::less, [](TypeParam a, TypeParam b) { return a < b; });
  this->expect_same(M::less_equal, [](TypeParam a, TypeParam b) { return a <= b; });
}

TYPED_TEST(MaskOf, OfBothHoldsWhereBothHold) {
  using M = Mask<TypeParam>;
  this->expect_same([](auto a, auto b) { return M::less_equal(a, b) & M::less_equal(b, a); },
                    [](TypeParam a, TypeParam b) { return a == b; });
  this->expect_same([](auto a, auto b) { return M::less(a, b) & M::less(b, a); },
                    [](TypeParam, TypeParam) { return false; });
}

}  // namespace
}  // namespace moe::kernels::mask_test
