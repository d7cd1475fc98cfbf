// SPDX-License-Identifier: Apache-2.0
// Rounding to bfloat16, against Eigen's; the register tile against sums in double, over every
// remainder.
#include "moe/kernels/bfloat16.hpp"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <limits>

#include "moe/kernels/packed_matrix.hpp"
#include "support/matrix_near.hpp"
#include "support/random_matrix.hpp"

namespace moe::kernels {
namespace {

using moe::testing::random_matrix;

TEST(Narrow, RoundsAsEigenDoesAndKeepsNan) {
  for (std::uint64_t bits = 0; bits < (std::uint64_t{1} << 32); bits += 0x0fff) {
    const auto value = std::bit_cast<float>(static_cast<std::uint32_t>(bits));
    const bf16 got = narrow<bf16>(value), eigen(value);
    const bool both_nan = std::isnan(value) && std::isnan(static_cast<float>(got));
    EXPECT_TRUE(both_nan || got.value == eigen.value) << value;
  }
  EXPECT_TRUE(
      std::isnan(static_cast<float>(narrow<bf16>(std::numeric_limits<float>::signaling_NaN()))));
}

// Denormals and the bits of NaN, too.
TEST(Narrow, RoundsEachLaneOfAPacketAsItDoesAScalar) {
  using Packet = GemmTile<float>::Packet;
  constexpr Index lanes = GemmTile<float>::packet_size;
  float value[lanes];
  bf16 got[lanes];
  for (std::uint64_t bits = 0; bits < (std::uint64_t{1} << 32); bits += 0x0ffd * lanes) {
    for (Index i = 0; i < lanes; ++i) {
      value[i] = std::bit_cast<float>(static_cast<std::uint32_t>(bits) +
                                      0x0ffd * static_cast<std::uint32_t>(i));
    }
    narrow_packet(Eigen::internal::ploadu<Packet>(value), got);
    for (Index i = 0; i < lanes; ++i) {
      ASSERT_EQ(got[i].value, narrow<bf16>(value[i]).value) << value[i];
    }
  }
}

TEST(DotBf16, PairsAreLowThenHighAndSumInFloat) {
  using Packet = GemmTile<bf16>::Packet;
  const bf16 a[2] = {bf16(3.0f), bf16(5.0f)}, b[2] = {bf16(7.0f), bf16(-11.0f)};
  const Packet sum = dot_pairs(broadcast_group<Packet>(a), broadcast_group<Packet>(b),
                               Eigen::internal::pset1<Packet>(0.5f));
  EXPECT_EQ(Eigen::internal::pfirst(sum), 0.5f + 21.0f - 55.0f);
}

/// |got - want| <= (depth + 2) 2^-24 sum |a b|: the rounding of each addition, in any order.
TEST(DotBf16, ProductIsWithinTheRoundingOfItsAdditions) {
  for (const Index depth : {1, 2, 3, 5, 16, 67, 300, 4097}) {
    for (const Index outputs : {1, 5, 64, 65}) {
      const Matrix<bf16> w = random_matrix<bf16>(outputs, depth, 1);
      const PackedMatrix<bf16> packed({&w});
      for (const Index rows : {1, 2, 6, 7, 13}) {
        Matrix<bf16> x = Matrix<bf16>::Constant(rows, packed.depth(), bf16(0));
        x.leftCols(depth) = random_matrix<bf16>(rows, depth, 2);
        std::vector<const bf16*> row;
        for (Index r = 0; r < rows; ++r) {
          row.push_back(&x.coeffRef(r, 0));
        }
        Matrix<float> sums(rows, packed.cols), got(rows, outputs);
        multiply_panels<bf16>(row, packed, 0, packed.num_panels(), sums.data(),
                              [&](const Finished<bf16>& tile) {
                                for (Index i = 0; i < tile.count * packed.cols; ++i) {
                                  const Index out = tile.panel * packed.cols + i % packed.cols;
                                  if (out < outputs) {
                                    got(tile.row + i / packed.cols, out) = tile.sums[i];
                                  }
                                }
                              });
        const Matrix<double> wide_x = x.leftCols(depth).cast<double>();
        const Matrix<double> wide_w = w.cast<double>();
        const Matrix<double> want = wide_x * wide_w.transpose();
        const Matrix<double> bound = static_cast<double>(depth + 2) * 0x1.0p-24 *
                                     (wide_x.cwiseAbs() * wide_w.cwiseAbs().transpose());
        EXPECT_TRUE(moe::testing::matrix_within(got, want, bound))
            << rows << " rows, " << outputs << " outputs, depth " << depth;
      }
    }
  }
}

}  // namespace
}  // namespace moe::kernels
