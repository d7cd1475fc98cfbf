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
using Formats = ::testing::Types<Q8Format, Q4Format, Mxfp4Format>;
TYPED_TEST_SUITE(CodedTile, Formats);

template <class F>
Matrix<float> tile(const CodedCase<F>& c, Matrix<float> sums, bool add) {
  kernels::multiply_tile(
      sums.rows(), kernels::RowPointers<kernels::CodedInput>{c.row.data(), 1},
      kernels::Panel<kernels::CodedInput, kernels::CodedBlock<F>>{c.panel.data()},
      c.blocks() * kernels::block_size,
      kernels::Sums<kernels::CodedInput>{sums.data(), sums.outerStride(),
                                         add ? kernels::Update::add : kernels::Update::assign},
      kernels::Ahead{c.panel.data()});
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
      for (const Index blocks : {1, 2, 9}) {
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
  const CodedCase<F> c(3, 5, Codes::any, 11);
  const Matrix<float> got = tile(c, Matrix<float>::Zero(3, 64), false);
  for (Index r = 0; r < 3; ++r) {
    for (Index col = 0; col < 64; ++col) {
      double want = 0.0, magnitudes = 0.0;
      for (std::size_t b = 0; b < c.panel.size(); ++b) {
        for (Index k = 0; k < kernels::block_size; ++k) {
          const double weight = double{F::scale_of(c.panel[b].scale[col])} * double{F::unit} *
                                (F::number(c.panel[b].code_at(col, k)) - F::bias);
          const kernels::CodedInput& x = c.row[static_cast<std::size_t>(r)][b];
          const double product = weight * double{x.scale} * x.code[k];
          want += product, magnitudes += std::abs(product);
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
    c.panel[3].scale[21] = 255;
  } else {
    c.panel[3].scale[21] = std::numeric_limits<Eigen::half>::quiet_NaN();
  }
  const Matrix<float> got = tile(c, Matrix<float>::Zero(3, 64), false);
  for (Index r = 0; r < 3; ++r) {
    for (Index col = 0; col < 64; ++col) {
      EXPECT_EQ(std::isnan(got(r, col)), r == 1 || col == 21) << r << ", " << col;
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
