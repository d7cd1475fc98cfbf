// SPDX-License-Identifier: Apache-2.0
// Packets of bfloat16: rounding to it, against scalars, and the product of pairs.
#include "moe/kernels/bfloat16.hpp"

#include <gtest/gtest.h>

#include <bit>
#include <cstdint>

#include "moe/kernels/convert.hpp"
#include "moe/kernels/register_tile.hpp"

namespace moe::kernels::bfloat16_test {
namespace {

// Denormals and the bits of NaN, too.
TEST(NarrowPacket, RoundsEachLaneOfAPacketAsItDoesAScalar) {
  using Packet = RegisterTile<float>::Packet;
  constexpr Index lanes = RegisterTile<float>::packet_size;
  float value[lanes], rounded[lanes];
  bf16 got[lanes];
  for (std::uint64_t bits = 0; bits < (std::uint64_t{1} << 32); bits += 0x0ffd * lanes) {
    for (Index i = 0; i < lanes; ++i) {
      value[i] = std::bit_cast<float>(static_cast<std::uint32_t>(bits) +
                                      0x0ffd * static_cast<std::uint32_t>(i));
    }
    const auto packet = Eigen::internal::ploadu<Packet>(value);
    narrow_packet(packet, got);
    Eigen::internal::pstoreu(rounded, round_packet<bf16>(packet));
    for (Index i = 0; i < lanes; ++i) {
      ASSERT_EQ(got[i].value, convert<bf16>(value[i]).value) << value[i];
      ASSERT_EQ(std::bit_cast<std::uint32_t>(rounded[i]), std::uint32_t{got[i].value} << 16)
          << value[i];
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

TEST(HalfOfPairs, WidensTheFirstOrTheSecondOfEachPair) {
  using Packet = RegisterTile<float>::Packet;
  constexpr Index lanes = RegisterTile<float>::packet_size;
  bf16 pairs[2 * lanes];
  for (Index i = 0; i < 2 * lanes; ++i) {
    pairs[i] = bf16(1.5f - static_cast<float>(i));
  }
  float first[lanes], second[lanes];
  const auto packet = load_step<Packet>(pairs);
  Eigen::internal::pstoreu(first, half_of_pairs<0>(packet));
  Eigen::internal::pstoreu(second, half_of_pairs<1>(packet));
  for (Index i = 0; i < lanes; ++i) {
    EXPECT_EQ(first[i], 1.5f - static_cast<float>(2 * i));
    EXPECT_EQ(second[i], 0.5f - static_cast<float>(2 * i));
  }
}

}  // namespace
}  // namespace moe::kernels::bfloat16_test
