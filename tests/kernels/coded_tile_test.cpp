// SPDX-License-Identifier: Apache-2.0
// The tile for weights in integers: the bits of plain loops, at the ends of the range as well.
#include "moe/kernels/coded_tile.hpp"

#include <gtest/gtest.h>

#include <limits>

#include "moe/storage.hpp"
#include "support/coded_case.hpp"
#include "support/matrix_near.hpp"

namespace moe::coded_tile_test {
namespace {

using testing::CodedCase;
using testing::Codes;

template <class F>
class CodedTile : public ::testing::Test {};
using Formats = ::testing::Types<Q8Format, Q4Format, Q4KFormat, Mxfp4Format>;
TYPED_TEST_SUITE(CodedTile, Formats);

template <class F>
Matrix<float> tile(const CodedCase<F>& c, Matrix<float> sums, bool add) {
  kernels::multiply_tile(
      sums.rows(), kernels::RowPointers<kernels::CodedInput>{c.row.data(), 1},
      kernels::Panel<kernels::CodedInput, kernels::CodedBlock<F>>{c.panel.data()},
      c.blocks() * kernels::block_size,
      kernels::Sums<kernels::CodedInput>{sums.data(), sums.outerStride(),
                                         add ? kernels::Update::add : kernels::Update::assign},
      kernels::Ahead{});
  return sums;
}

template <class F>
Matrix<float> plainly(const CodedCase<F>& c, Matrix<float> sums, bool add) {
  kernels::multiply_coded_plainly<F>(sums.rows(), c.row.data(), c.panel.data(), c.blocks(),
                                     sums.data(), sums.outerStride(), add);
  return sums;
}

TYPED_TEST(CodedTile, HasTheBitsOfPlainLoops) {
  for (const Codes codes : {Codes::any, Codes::most, Codes::least}) {
    for (Index rows = 1; rows <= kernels::coded_rows; ++rows) {
      for (const Index blocks : {1, 2, 9, 16}) {
        const CodedCase<TypeParam> c(rows, blocks, codes, 7);
        const Matrix<float> before = Matrix<float>::Constant(rows, 64, 0.375f);
        for (const bool add : {false, true}) {
          ASSERT_TRUE(testing::same_bits(tile(c, before, add), plainly(c, before, add)))
              << rows << " rows, " << blocks << " blocks";
        }
      }
    }
  }
}

TYPED_TEST(CodedTile, IsTheProductOfTheNumbersThatTheCodesSay) {
  using F = TypeParam;
  using Block = kernels::CodedBlock<F>;
  const CodedCase<F> c(3, 9, Codes::any, 11);
  const Matrix<float> got = tile(c, Matrix<float>::Zero(3, 64), false);
  for (Index r = 0; r < 3; ++r) {
    for (Index col = 0; col < 64; ++col) {
      double want = 0.0, magnitudes = 0.0;
      for (Index k = 0; k < c.blocks() * kernels::block_size; ++k) {
        const auto b = k / kernels::block_size;
        const kernels::CodedInput& x = c.row[static_cast<std::size_t>(r)][b];
        const double value = double{x.scale} * x.code[k % kernels::block_size];
        const double weight = double{
            c.panel[static_cast<std::size_t>(k / Block::depth)].weight(col, k % Block::depth)};
        want += weight * value, magnitudes += std::abs(weight * value);
        if constexpr (kernels::HasMinima<F>) {
          const auto block = kernels::block_at(c.panel.data(), b);
          magnitudes += 2 * std::abs(double{block.minimum[col]} * value);
        }
      }
      EXPECT_NEAR(got(r, col), want, 1e-6 * magnitudes) << r << ", " << col;
    }
  }
}

TYPED_TEST(CodedTile, LetsNanOfAScaleReachItsRowOrItsColumnAlone) {
  using F = TypeParam;
  CodedCase<F> c(3, 4, Codes::any, 13);
  c.rows[1][2].scale = std::numeric_limits<float>::quiet_NaN();
  if constexpr (std::is_same_v<typename F::Scale, std::uint8_t>) {
    c.panel.back().scale[21] = 255;
  } else {
    c.panel.back().scale[21] = std::numeric_limits<Eigen::half>::quiet_NaN();
  }
  const Matrix<float> got = tile(c, Matrix<float>::Zero(3, 64), false);
  for (Index r = 0; r < 3; ++r) {
    for (Index col = 0; col < 64; ++col) {
      EXPECT_EQ(std::isnan(got(r, col)), r == 1 || col == 21) << r << ", " << col;
    }
  }
}

TEST(CodedTile, LetsNanAndInfinityOfAScaleOrAMinimumOf256ReachItsColumnAlone) {
  using Half = std::numeric_limits<Eigen::half>;
  for (const Eigen::half bad : {Half::quiet_NaN(), Half::infinity(), -Half::infinity()}) {
    for (const bool of_minimum : {false, true}) {
      for (const Codes codes : {Codes::any, Codes::most, Codes::least}) {
        CodedCase<Q4KFormat> c(2, 11, codes, 19);
        auto& block = c.panel[1];
        (of_minimum ? block.minimum : block.scale)[40] = bad;
        const Matrix<float> got = tile(c, Matrix<float>::Zero(2, 64), false);
        for (Index col = 0; col < 64; ++col) {
          EXPECT_EQ(std::isfinite(got(0, col)), col != 40) << col;
          EXPECT_EQ(std::isfinite(got(1, col)), col != 40) << col;
        }
      }
    }
  }
}

TEST(CodedTile, TakesTheLeastAndTheLargestExponent) {
  CodedCase<Mxfp4Format> c(1, 1, Codes::any, 17);
  const std::uint8_t exponents[] = {0, 1, 2, 253, 254};
  std::copy(std::begin(exponents), std::end(exponents), c.panel[0].scale);
  EXPECT_EQ(Mxfp4Format::scale_of(0), 0x1p-127f);
  EXPECT_EQ(Mxfp4Format::scale_of(254), 0x1p127f);
  const Matrix<float> zeros = Matrix<float>::Zero(1, 64);
  EXPECT_TRUE(testing::same_bits(tile(c, zeros, false), plainly(c, zeros, false)));
}

}  // namespace
}  // namespace moe::coded_tile_test
