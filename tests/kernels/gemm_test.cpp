// SPDX-License-Identifier: Apache-2.0
// Tests of the matrix product: right for every remainder and layout, the same bits for a row
// wherever it stands, nothing touched outside, nothing allocated.
#include "moe/kernels/gemm.hpp"

#include <gtest/gtest.h>

#include "moe/detail/reserve.hpp"
#include "support/count_allocations.hpp"
#include "support/guarded.hpp"
#include "support/matrix_near.hpp"
#include "support/multiply.hpp"
#include "support/product_sizes.hpp"
#include "support/random_matrix.hpp"
#include "support/thorough.hpp"

namespace moe::kernels::gemm_test {
namespace {

using testing::depths;
using testing::matrix_within;
using testing::max_rows;
using testing::multiply;
using testing::random_matrix;
using testing::row_counts;
using testing::same_bits;
using testing::widths;

enum class Layout { plain, transposed, block, scattered };
constexpr Layout all_layouts[] = {Layout::plain, Layout::transposed, Layout::block,
                                  Layout::scattered};

/// A matrix stored in some layout, NaN in the gaps: who reads a gap spoils the result.
template <class T>
struct Stored {
  Matrix<T> memory;
  View<T> view;

  Stored(const Matrix<T>& m, Layout layout) {
    const Index rows = m.rows(), cols = m.cols();
    const T nan = Eigen::NumTraits<T>::quiet_NaN();
    switch (layout) {
      case Layout::plain:
        memory = m;
        view = {memory.data(), rows, cols, cols, 1};
        break;
      case Layout::transposed:
        memory = m.transpose();
        view = {memory.data(), rows, cols, 1, rows};
        break;
      case Layout::block:
        memory = Matrix<T>::Constant(rows + 2, cols + 5, nan);
        memory.block(1, 2, rows, cols) = m;
        view = kernels::view(memory.block(1, 2, rows, cols));
        break;
      case Layout::scattered:
        memory = Matrix<T>::Constant(2 * rows + 1, 3 * cols + 1, nan);
        view = {memory.data(), rows, cols, 2 * memory.cols(), 3};
        for (Index row = 0; row < rows; ++row) {
          for (Index col = 0; col < cols; ++col) {
            memory(2 * row, 3 * col) = m(row, col);
          }
        }
    }
  }
};

/// Half a unit in the last place: what storing a Wide<T> as T may cost. (NumTraits<half>::epsilon()
/// of Eigen 3.4 is eight times too small.)
template <class T>
constexpr double rounding = 0.0;
template <>
constexpr double rounding<Eigen::half> = 0x1p-11;
template <>
constexpr double rounding<bf16> = 0x1p-8;

/// start + a * b in more digits than its own sums have, and the bound of the rounding of any chain
/// of K multiply-adds.
template <class T>
struct Oracle {
  Matrix<double> value, bound;

  Oracle(const Matrix<T>& a, const Matrix<T>& b, const Matrix<T>& start)
      : value(a.rows(), b.cols()), bound(a.rows(), b.cols()) {
    using W = Wide<T>;
    using Exact = std::conditional_t<std::is_same_v<W, double>, long double, double>;
    const auto wide = [](T x) { return static_cast<Exact>(static_cast<W>(x)); };
    for (Index row = 0; row < a.rows(); ++row) {
      for (Index col = 0; col < b.cols(); ++col) {
        Exact sum = wide(start(row, col)), magnitude = std::abs(sum);
        for (Index k = 0; k < a.cols(); ++k) {
          sum += wide(a(row, k)) * wide(b(k, col));
          magnitude += std::abs(wide(a(row, k)) * wide(b(k, col)));
        }
        value(row, col) = static_cast<double>(sum);
        const double chain =
            static_cast<double>(Eigen::NumTraits<W>::epsilon()) * static_cast<double>(a.cols() + 1);
        bound(row, col) =
            chain * static_cast<double>(magnitude) + rounding<T> * std::abs(value(row, col));
      }
    }
  }
};

template <class T>
Matrix<T> product(const Matrix<T>& a, const Matrix<T>& b, Update update, Matrix<T> c) {
  multiply<T>(view(a), view(b), c, update);
  return c;
}

template <class T>
Matrix<T> product(const Matrix<T>& a, const Matrix<T>& b) {
  return product<T>(a, b, Update::assign, Matrix<T>(a.rows(), b.cols()));
}

template <class T>
class Gemm : public ::testing::Test {};
using Scalars = ::testing::Types<float, double, bf16, Eigen::half>;
TYPED_TEST_SUITE(Gemm, Scalars);

// One product of the greatest size is held against the oracle; every smaller one must then have the
// bits of its part. So each remainder is right, and no row or column knows of its neighbours.
TYPED_TEST(Gemm, IsRightAndHasTheSameBitsForEveryRemainder) {
  using T = TypeParam;
  for (const Index depth : depths<T>()) {
    const Matrix<T> a = random_matrix<T>(max_rows, depth, 1);
    const Matrix<T> b = random_matrix<T>(depth, 2 * RegisterTile<T>::cols + 1, 2);
    const Matrix<T> start = random_matrix<T>(max_rows, b.cols(), 3);
    for (const Update update : {Update::assign, Update::add}) {
      const bool add = update == Update::add;
      const Oracle<T> oracle(a, b, add ? start : Matrix<T>::Zero(max_rows, b.cols()));
      const Matrix<T> whole = product(a, b, update, start);
      ASSERT_TRUE(matrix_within(whole, oracle.value, oracle.bound)) << "K = " << depth;
      for (const Index cols : widths<T>(depth)) {
        for (const Index rows : row_counts(depth)) {
          Matrix<T> c = start.topLeftCorner(rows, cols);
          multiply<T>(view(a).block(0, 0, rows, depth), view(b).block(0, 0, depth, cols), c,
                      update);
          ASSERT_TRUE(same_bits(c, whole.topLeftCorner(rows, cols)))
              << rows << " x " << depth << " x " << cols << ", add = " << add;
        }
      }
    }
  }
}

TYPED_TEST(Gemm, KeepsTheBitsOfARowAndAColumnWhereverTheyStand) {
  using T = TypeParam;
  const Index width = 2 * RegisterTile<T>::cols + 1;
  const Matrix<T> a = random_matrix<T>(max_rows, 301, 4), b = random_matrix<T>(301, width, 5);
  const Matrix<T> whole = product(a, b);
  for (Index row = 0; row < max_rows; ++row) {
    ASSERT_TRUE(same_bits(product<T>(a.row(row), b), whole.row(row))) << "row " << row;
  }
  for (Index col = 0; col < width; col += 7) {
    ASSERT_TRUE(same_bits(product<T>(a, b.rightCols(width - col)), whole.rightCols(width - col)));
    ASSERT_TRUE(same_bits(product<T>(a, b.col(col)), whole.col(col))) << "column " << col;
  }
}

TYPED_TEST(Gemm, KeepsTheBitsOfARowInMoreRowsThanItTakesAtATime) {
  using T = TypeParam;
  const Index width = RegisterTile<T>::cols + 3;
  const Matrix<T> a = random_matrix<T>(517, 38, 4), b = random_matrix<T>(38, width, 5);
  const Matrix<T> whole = product(a, b);
  for (const Index row : {0, 63, 64, 255, 256, 511, 512, 516}) {
    ASSERT_TRUE(same_bits(product<T>(a.row(row), b), whole.row(row))) << "row " << row;
  }
}

TYPED_TEST(Gemm, HasTheSameBitsForEveryLayoutOfItsOperands) {
  using T = TypeParam;
  const Index tile = RegisterTile<T>::cols;
  for (const Index cols : {Index(1), Index(5), tile, tile + 3}) {
    for (const Index depth : {Index(1), Index(37), RegisterTile<T>::depth + 5}) {
      const Matrix<T> b = random_matrix<T>(depth, cols, 7);
      for (Index rows = 1; rows < 9; rows += testing::thorough ? 1 : 3) {
        const Matrix<T> a = random_matrix<T>(rows, depth, 6), want = product(a, b);
        for (const Layout layout_a : all_layouts) {
          for (const Layout layout_b : all_layouts) {
            const Stored<T> stored_a(a, layout_a), stored_b(b, layout_b);
            Matrix<T> c(rows, cols);
            multiply<T>(stored_a.view, stored_b.view, c, Update::assign);
            ASSERT_TRUE(same_bits(c, want))
                << "layouts " << static_cast<int>(layout_a) << ", " << static_cast<int>(layout_b);
          }
        }
      }
    }
  }
}

TYPED_TEST(Gemm, WritesItsBlockOfCAndNothingElse) {
  using T = TypeParam;
  const Matrix<T> around = random_matrix<T>(17, 2 * RegisterTile<T>::cols + 9, 8);
  for (const Update update : {Update::assign, Update::add}) {
    for (const Index cols : widths<T>()) {
      for (const Index rows : {1, 5, 6, 7, 13}) {
        const Matrix<T> a = random_matrix<T>(rows, 19, 9), b = random_matrix<T>(19, cols, 10);
        Matrix<T> got = around, want = around;
        want.block(2, 3, rows, cols) = product<T>(a, b, update, around.block(2, 3, rows, cols));
        multiply<T>(view(a), view(b), got.block(2, 3, rows, cols), update);
        ASSERT_TRUE(same_bits(got, want)) << rows << " x " << cols;
      }
    }
  }
}

TYPED_TEST(Gemm, TouchesNoMemoryOutsideItsOperands) {
  using T = TypeParam;
  using testing::Flush;
  using testing::Guarded;
  for (const Flush flush : {Flush::front, Flush::back}) {
    for (const Index cols : widths<T>()) {
      for (const Index rows : {1, 4, 6, 7}) {
        for (const Index depth : {1, 15, 16, 33}) {
          const Matrix<T> a = random_matrix<T>(rows, depth, 11);
          const Matrix<T> b = random_matrix<T>(depth, cols, 12);
          const Matrix<T> want = product(a, b);
          Guarded<T> ga(a, flush), gb(b, flush), gc(Matrix<T>::Zero(rows, cols), flush);
          multiply<T>(view(ga.map()), view(gb.map()), gc.map(), Update::assign);
          ASSERT_TRUE(same_bits(gc.map(), want));
          Guarded<T> gat(a.transpose(), flush), gbt(b.transpose(), flush);
          gc.map().setZero();
          multiply<T>(view(gat.map()).transpose(), view(gbt.map()).transpose(), gc.map(),
                      Update::add);
          ASSERT_TRUE(testing::matrix_near(gc.map(), want, 1e-5));
        }
      }
    }
  }
}

// Rows an odd number of cache lines apart are not packed, but for bfloat16.
TYPED_TEST(Gemm, ReadsBWhereItIsWithTheBitsOfPackedB) {
  using T = TypeParam;
  const Index cols = detail::spread_width<T>(RegisterTile<T>::cols + 1);
  for (const Index depth : {Index(1), Index(37), RegisterTile<T>::depth + 5}) {
    const Matrix<T> a = random_matrix<T>(13, depth, 16), b = random_matrix<T>(depth, cols, 17);
    Matrix<T> wider = Matrix<T>::Zero(depth, cols + RegisterTile<T>::line);
    wider.leftCols(cols) = b;
    ASSERT_TRUE(readable_in_place(view(b)));
    ASSERT_FALSE(readable_in_place(view(wider)));
    Matrix<T> packed(13, cols);
    multiply<T>(view(a), view(wider.leftCols(cols)), packed, Update::assign);
    testing::Guarded<T> guarded(b, testing::Flush::back);
    Matrix<T> in_place(13, cols);
    multiply<T>(view(a), view(guarded.map()), in_place, Update::assign);
    ASSERT_TRUE(same_bits(in_place, packed)) << depth;
    ASSERT_TRUE(same_bits(in_place, product(a, b))) << depth;
  }
}

TYPED_TEST(Gemm, MakesZerosOrKeepsCWithoutDepth) {
  using T = TypeParam;
  const Matrix<T> a(3, 0), b(0, 70), start = random_matrix<T>(3, 70, 13);
  EXPECT_TRUE(same_bits(product(a, b, Update::assign, start), Matrix<T>::Zero(3, 70)));
  EXPECT_TRUE(same_bits(product(a, b, Update::add, start), start));
}

TYPED_TEST(Gemm, DoesNothingWithoutRowsOrColumns) {
  using T = TypeParam;
  const Matrix<T> a = random_matrix<T>(3, 4, 14);
  EXPECT_EQ(product<T>(a.topRows(0), random_matrix<T>(4, 9, 15)).rows(), 0);
  EXPECT_EQ(product<T>(a, Matrix<T>(4, 0)).cols(), 0);
}

TYPED_TEST(Gemm, OverwritesNanInCOnAssign) {
  using T = TypeParam;
  const Matrix<T> a = random_matrix<T>(7, 5, 16), b = random_matrix<T>(5, 67, 17);
  const Matrix<T> nan = Matrix<T>::Constant(7, 67, Eigen::NumTraits<T>::quiet_NaN());
  EXPECT_TRUE(same_bits(product(a, b, Update::assign, nan), product(a, b)));
  EXPECT_TRUE(product(a, b, Update::add, nan).array().isNaN().all());
}

TYPED_TEST(Gemm, KeepsNanAndInfInTheirRowOrColumn) {
  using T = TypeParam;
  const Index width = 2 * RegisterTile<T>::cols + 1;
  const Matrix<T> a = random_matrix<T>(max_rows, 20, 18), b = random_matrix<T>(20, width, 19);
  const Matrix<T> clean = product(a, b);
  for (const T poison : {Eigen::NumTraits<T>::quiet_NaN(), Eigen::NumTraits<T>::infinity()}) {
    for (const Index at : {0, 5, 6, 12}) {
      Matrix<T> bad = a, got;
      bad(at, 11) = poison;
      got = product(bad, b);
      ASSERT_FALSE(got.row(at).array().isFinite().any());
      got.row(at) = clean.row(at);
      ASSERT_TRUE(same_bits(got, clean)) << "row " << at;
    }
    for (const Index at : {Index(0), width / 2, width - 1}) {
      Matrix<T> bad = b, got;
      bad(3, at) = poison;
      got = product(a, bad);
      ASSERT_FALSE(got.col(at).array().isFinite().any());
      got.col(at) = clean.col(at);
      ASSERT_TRUE(same_bits(got, clean)) << "column " << at;
    }
  }
}

TYPED_TEST(Gemm, AgreesWithItsPlainTwin) {
  using T = TypeParam;
  const Matrix<T> a = random_matrix<T>(9, 50, 20), b = random_matrix<T>(50, 70, 21);
  const Matrix<T> start = random_matrix<T>(9, 70, 22);
  for (const Update update : {Update::assign, Update::add}) {
    Matrix<T> plain = start;
    gemm_plain<T>(view(a), view(b), plain, update);
    const Oracle<T> oracle(a, b, update == Update::add ? start : Matrix<T>::Zero(9, 70));
    EXPECT_TRUE(matrix_within(plain, oracle.value, oracle.bound));
    EXPECT_TRUE(matrix_within(product(a, b, update, start), plain, 2.0 * oracle.bound));
  }
}

template <class T>
class GemmOfNarrow : public ::testing::Test {};
using NarrowScalars = ::testing::Types<bf16, Eigen::half>;
TYPED_TEST_SUITE(GemmOfNarrow, NarrowScalars);

TYPED_TEST(GemmOfNarrow, SumsInFloatAndRoundsOnce) {
  using T = TypeParam;
  for (const Index depth : {0, 1, 3, 67, 300}) {
    const Matrix<T> a = random_matrix<T>(3, depth, 23), b = random_matrix<T>(depth, 9, 24);
    const Matrix<T> start = random_matrix<T>(3, 9, 25);
    for (const Update update : {Update::assign, Update::add}) {
      const Oracle<T> oracle(a, b, update == Update::add ? start : Matrix<T>::Zero(3, 9));
      const Matrix<T> got = product(a, b, update, start);
      ASSERT_TRUE(matrix_within(got, oracle.value, oracle.bound)) << "K = " << depth;
      const Stored<T> strided(b, Layout::scattered);
      Matrix<T> c = start;
      multiply<T>(view(a), strided.view, c, update);
      ASSERT_TRUE(same_bits(c, got));
    }
  }
}

TYPED_TEST(Gemm, HasTheSameBitsInLittleMemory) {
  using T = TypeParam;
  if constexpr (Vectorised<T>) {
    const Index cols = detail::spread_width<T>(2 * RegisterTile<T>::cols + 1);
    const Matrix<T> a = random_matrix<T>(77, RegisterTile<T>::depth + 5, 26);
    const Matrix<T> b = random_matrix<T>(a.cols(), cols, 27),
                    start = random_matrix<T>(77, cols, 28);
    const Matrix<T> a_transposed = a.transpose(), b_transposed = b.transpose();
    for (const View<T>& left : {view(a), view(a_transposed).transpose()}) {
      for (const View<T>& right : {view(b), view(b_transposed).transpose()}) {
        for (const Update update : {Update::assign, Update::add}) {
          Matrix<T> c = start;
          gemm_on_stack<T>(left, right, c, update);
          EXPECT_TRUE(same_bits(c, product(a, b, update, start)));
          GemmMemory<T> little(65536);
          c = start;
          gemm<T>(left, right, c, update, little);
          EXPECT_TRUE(same_bits(c, product(a, b, update, start)));
        }
      }
    }
  }
}

// Rows that are packed and rows that are not, more than a block of k, less than a panel.
TYPED_TEST(GemmOfNarrow, AddsToFloatsWithoutRounding) {
  using T = TypeParam;
  for (const Index rows : {3, 13, 70}) {
    for (const Index depth : {Index(5), Index(68), RegisterTile<T>::depth + 2}) {
      const Matrix<T> a = random_matrix<T>(rows, depth, 29), b = random_matrix<T>(depth, 71, 30);
      const Matrix<T> a_transposed = a.transpose(), b_transposed = b.transpose();
      const Matrix<float> start = random_matrix<float>(rows, 71, 31);
      const Oracle<float> oracle(a.template cast<float>(), b.template cast<float>(), start);
      GemmMemory<T> memory;
      for (const View<T>& left : {view(a), view(a_transposed).transpose()}) {
        for (const View<T>& right : {view(b), view(b_transposed).transpose()}) {
          Matrix<float> c = start;
          gemm<T, float>(left, right, c, Update::add, memory);
          ASSERT_TRUE(matrix_within(c, oracle.value, oracle.bound)) << rows << " x " << depth;
        }
      }
    }
  }
}

#if MOE_COUNTS_ALLOCATIONS
TYPED_TEST(Gemm, AllocatesNothing) {
  using T = TypeParam;
  const Matrix<T> a = random_matrix<T>(13, 600, 26), b = random_matrix<T>(131, 600, 27);
  Matrix<T> c(20, 140);
  multiply<T>(view(a), view(b).transpose(), c.block(1, 1, 13, 131), Update::assign);
  EXPECT_EQ(testing::count_allocations([&] {
              multiply<T>(view(a), view(b).transpose(), c.block(1, 1, 13, 131), Update::assign);
              multiply<T>(view(a), view(b).transpose(), c.block(1, 1, 13, 131), Update::add);
            }),
            0);
}
#endif

}  // namespace
}  // namespace moe::kernels::gemm_test
