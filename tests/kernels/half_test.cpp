// SPDX-License-Identifier: Apache-2.0
// Every half, widened, against Eigen's own conversion.
#include "moe/kernels/half.hpp"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <vector>

#include "moe/kernels/lanes.hpp"

namespace moe::kernels::half_test {
namespace {

using Packet = Lanes<float>::Packet;
constexpr std::size_t size = Lanes<float>::size;

std::vector<Eigen::half> every_half() {
  std::vector<Eigen::half> all(65536);
  for (std::size_t i = 0; i < all.size(); ++i) {
    all[i] = Eigen::numext::bit_cast<Eigen::half>(static_cast<std::uint16_t>(i));
  }
  return all;
}

std::uint32_t bits(float value) { return std::bit_cast<std::uint32_t>(value); }

TEST(Half, IsWidenedToTheSameNumber) {
  const auto all = every_half();
  for (std::size_t i = 0; i < all.size(); i += size) {
    float wide[size], same[size];
    Eigen::internal::pstoreu(wide, load_step<Packet>(all.data() + i));
    Eigen::internal::pstoreu(same, broadcast_step<Packet>(all.data() + i));
    for (std::size_t lane = 0; lane < size; ++lane) {
      const float want = Eigen::half_impl::half_to_float(all[i + lane]);
      if (std::isnan(want)) {
        ASSERT_TRUE(std::isnan(wide[lane]) && std::signbit(wide[lane]) == std::signbit(want));
      } else {
        ASSERT_EQ(bits(wide[lane]), bits(want)) << i + lane;
      }
      if (!std::isnan(wide[0])) {
        ASSERT_EQ(bits(same[lane]), bits(wide[0]));
      }
    }
  }
}

}  // namespace
}  // namespace moe::kernels::half_test
