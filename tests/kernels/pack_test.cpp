// SPDX-License-Identifier: Apache-2.0
// Panels of a matrix against the layout as register_tile.hpp reads it, element by element.
#include "moe/kernels/pack.hpp"

#include <gtest/gtest.h>

#include <vector>

#include "../support/random_matrix.hpp"

namespace moe::kernels::pack_test {
namespace {

/// Element (k, col) lies at its step, in there at its column, in there at its place in the step;
/// what b lacks is zero. Halves are widened.
template <class T>
void expect_layout(View<T> b, const char* form) {
  using P = PackedAs<T>;
  using Tile = RegisterTile<P>;
  const Index depth = Tile::whole_steps(b.rows);
  std::vector<P> panel(static_cast<std::size_t>(depth * Tile::cols), P(9));
  pack_panel(b, panel.data());
  for (Index k = 0; k < depth; ++k) {
    for (Index col = 0; col < Tile::cols; ++col) {
      const bool inside = k < b.rows && col < b.cols;
      const T want = inside ? b.data[k * b.row_stride + col * b.col_stride] : T(0);
      const Index place =
          k / Tile::step * Tile::step * Tile::cols + col * Tile::step + k % Tile::step;
      ASSERT_EQ(static_cast<double>(panel[static_cast<std::size_t>(place)]),
                static_cast<double>(want))
          << form << ": " << k << ", " << col << " of " << b.rows << ", " << b.cols;
    }
  }
}

template <class T>
class PackPanel : public ::testing::Test {};
using Scalars = ::testing::Types<float, double, bf16, Eigen::half>;
TYPED_TEST_SUITE(PackPanel, Scalars);

TYPED_TEST(PackPanel, LaysOutRowsColumnsAndAnyStrides) {
  using Tile = RegisterTile<PackedAs<TypeParam>>;
  const Index square = Tile::packet_size * Tile::step;
  for (const Index depth : {Index{1}, Index{2}, square - 1, square, 17 * square + 3}) {
    for (const Index cols : {Index{1}, Tile::cols - 1, Tile::cols}) {
      const Matrix<TypeParam> m =
          testing::random_matrix<float>(depth, 2 * cols, 1).template cast<TypeParam>();
      const Matrix<TypeParam> t = m.transpose();
      expect_layout(view(m).block(0, 1, depth, cols), "contiguous rows");
      expect_layout(view(t).block(1, 0, cols, depth).transpose(), "contiguous columns");
      expect_layout<TypeParam>({m.data(), depth, cols, m.cols(), 2}, "every other column");
    }
  }
}

}  // namespace
}  // namespace moe::kernels::pack_test
