// SPDX-License-Identifier: Apache-2.0
// Packets of bfloat16: rounding to it, against scalars, and the product of pairs.
#include "moe/kernels/bfloat16.hpp"

#include <gtest/gtest.h>

#include <bit>
#include <cstdint>

#include "moe/kernels/convert.hpp"
#include "moe/kernels/register_tile.hpp"

namespace moe::kernels {
namespace {

// Denormals and the bits of NaN, too.
TEST(NarrowPacket, RoundsEachLaneOfAPacketAsItDoesAScalar) {
  using Packet = RegisterTile<float>::Packet;
  constexpr Index lanes = RegisterTile<float>::packet_size;
  float value[lanes];
  bf16 got[lanes];
  for (std::uint64_t bits = 0; bits < (std::uint64_t{1} << 32); bits += 0x0ffd * lanes) {
    for (Index i = 0; i < lanes; ++i) {
      value[i] = std::bit_cast<float>(static_cast<std::uint32_t>(bits) +
                                      0x0ffd * static_cast<std::uint32_t>(i));
    }
    narrow_packet(Eigen::internal::ploadu<Packet>(value), got);
    for (Index i = 0; i < lanes; ++i) {
      ASSERT_EQ(got[i].value, convert<bf16>(value[i]).value) << value[i];
    }
  }
}

TEST(DotBf16, PairsAreLowThenHighAndSumInFloat) {
  using Packet = RegisterTile<bf16>::Packet;
  const bf16 a[2] = {bf16(3.0f), bf16(5.0f)}, b[2] = {bf16(7.0f), bf16(-11.0f)};
  const Packet sum = dot_pairs(broadcast_step<Packet>(a), broadcast_step<Packet>(b),
                               Eigen::internal::pset1<Packet>(0.5f));
  EXPECT_EQ(Eigen::internal::pfirst(sum), 0.5f + 21.0f - 55.0f);
}

}  // namespace
}  // namespace moe::kernels
