// SPDX-License-Identifier: Apache-2.0
// What every storage of weights keeps: the weights rounded once, in panels as the tile reads them.
#include "moe/storage/panels.hpp"

#include <gtest/gtest.h>

#include <memory>

#include "moe/storage.hpp"
#include "support/guarded.hpp"
#include "support/matrix_near.hpp"
#include "support/product_sizes.hpp"
#include "support/random_matrix.hpp"

namespace moe::panels_test {
namespace {

using testing::random_matrix;
using testing::same_bits;
using testing::widths;

static_assert(Storage<float> && Storage<double> && Storage<bf16>);
static_assert(!Storage<Eigen::half> && !Storage<int>);

template <class S>
class PackedMatrixOf : public ::testing::Test {};
using Storages = ::testing::Types<float, double, bf16>;
TYPED_TEST_SUITE(PackedMatrixOf, Storages);

TYPED_TEST(PackedMatrixOf, UnpacksToTheWeightsRoundedOnce) {
  using S = TypeParam;
  using W = Wide<S>;
  for (Index depth = 1; depth <= 67; ++depth) {
    for (const Index outputs : widths<typename PackedMatrix<S>::Weight>(depth)) {
      const Matrix<W> w = random_matrix<W>(outputs, depth, 8);
      const Matrix<W> v = random_matrix<W>(outputs, depth, 9);
      const Matrix<W> rounded_w = w.template cast<S>().template cast<W>();
      const Matrix<W> rounded_v = v.template cast<S>().template cast<W>();
      const PackedMatrix<S> one({&w}), two({&w, &v});
      ASSERT_TRUE(same_bits(one.unpack(0), rounded_w)) << outputs << " x " << depth;
      ASSERT_TRUE(same_bits(two.unpack(0), rounded_w)) << outputs << " x " << depth;
      ASSERT_TRUE(same_bits(two.unpack(1), rounded_v)) << outputs << " x " << depth;
    }
  }
}

TEST(PackedMatrix, OfBfloat16RoundsWeightsOfDoubleOnce) {
  // By way of float this is the middle of two neighbours, and their even one, 1.
  const Matrix<double> w = Matrix<double>::Constant(3, 2, 1.0 + 0x1p-8 + 0x1p-40);
  EXPECT_EQ(PackedMatrix<bf16>({&w}).unpack(0), Matrix<float>::Constant(3, 2, 1.0f + 0x1p-7f));
}

TYPED_TEST(PackedMatrixOf, FillsItsPanelsUpWithZeros) {
  using S = TypeParam;
  const Matrix<S> w = Matrix<S>::Ones(PackedMatrix<S>::cols + 1, 5);
  const PackedMatrix<S> packed({&w, &w});
  const Index size = packed.num_panels() * packed.depth() * packed.cols;
  EXPECT_EQ(packed.num_panels(), 3);
  EXPECT_EQ(packed.bytes(), static_cast<std::size_t>(size) * sizeof(S));
  const Eigen::Map<const Matrix<S>> panels(packed.stored(0, 0), 1, size);
  EXPECT_EQ((panels.array() == S(1)).count(), 2 * w.size());
  EXPECT_EQ((panels.array() == S(0)).count(), size - 2 * w.size());
}

/// Each block of k of each panel against the weights, where the tile finds them.
template <class S>
void expect_panels(const PackedMatrix<S>& packed) {
  using Packed = PackedMatrix<S>;
  using Weight = typename Packed::Weight;
  using Tile = kernels::RegisterTile<typename Packed::Input, Weight>;
  constexpr Index step = Tile::step, cols = Tile::cols;
  const Matrix<Wide<S>> want = packed.unpack(0);
  for (Index panel = 0; panel < packed.num_panels(); ++panel) {
    for (Index k = 0; k < packed.depth(); k += Tile::depth) {
      const Index size = std::min(Tile::depth, packed.depth() - k);
      const Index in_buffer = std::min(size * cols, Packed::buffer_size);
      const testing::Guarded<Weight> buffer(Matrix<Weight>(1, in_buffer), testing::Flush::back);
      const Weight* got = packed.panel(panel, k, size, buffer.map().data());
      for (Index i = 0; i < size * cols; ++i) {
        const Index out = panel * cols + i / step % cols;
        const Index at = k + i / (step * cols) * step + i % step;
        const bool inside = out < packed.num_outputs() && at < packed.width();
        ASSERT_EQ(static_cast<Wide<S>>(got[i]), inside ? want(out, at) : Wide<S>(0))
            << "panel " << panel << ", k " << at;
      }
    }
  }
}

TYPED_TEST(PackedMatrixOf, GivesThePanelsOfItsTileBlockByBlock) {
  using Packed = PackedMatrix<TypeParam>;
  using Tile = kernels::RegisterTile<typename Packed::Input, typename Packed::Weight>;
  for (const Index width : {Index(1), Index(7), Tile::depth - 1, Tile::depth + 5}) {
    const Matrix<TypeParam> w = random_matrix<TypeParam>(Packed::cols + 2, width, 1);
    expect_panels(Packed({&w}));
  }
}

TYPED_TEST(PackedMatrixOf, SaysWhichBytesAPanelIsMadeOf) {
  using Packed = PackedMatrix<TypeParam>;
  const Matrix<TypeParam> w = random_matrix<TypeParam>(2 * Packed::cols, 10, 1);
  const Packed packed({&w});
  const auto first = packed.source(0, 0, packed.depth()), second = packed.source(1, 0, 2);
  EXPECT_EQ(first.data(), static_cast<const void*>(packed.stored(0, 0)));
  EXPECT_EQ(first.data() + first.size(), second.data());
  EXPECT_EQ(first.size(), packed.bytes() / 2);
  EXPECT_EQ(second.size(), packed.bytes() / 10);
}

TEST(PackedMatrix, OnMemoryOfOthersGivesTheirWeights) {
  const Matrix<float> w = random_matrix<float>(70, 45, 3);
  const PackedMatrix<q8> owner({&w, &w});
  const auto* const panels = owner.panel(0, 0, 0, nullptr);
  const PackedMatrix<q8> view(
      owner, std::shared_ptr<const PackedMatrix<q8>::Weight[]>(std::shared_ptr<void>(), panels));
  EXPECT_EQ(view.panel(0, 0, 0, nullptr), panels);
  EXPECT_EQ(view.bytes(), owner.bytes());
  EXPECT_TRUE(same_bits(view.unpack(1), owner.unpack(1)));
}

TEST(PackedMatrix, SharesItsPanelsWithACopyAndTakesThemAlongWhenMoved) {
  const Matrix<float> w = random_matrix<float>(70, 45, 3);
  auto first = std::make_unique<PackedMatrix<bf16>>(PackedMatrix<bf16>({&w}));
  const Matrix<float> want = first->unpack(0);
  const bf16* const panels = first->stored(0, 0);
  const PackedMatrix<bf16> copy = *first, moved = std::move(*first);
  first.reset();
  EXPECT_EQ(copy.stored(0, 0), panels);
  EXPECT_EQ(moved.stored(0, 0), panels);
  EXPECT_TRUE(same_bits(copy.unpack(0), want));
}

}  // namespace
}  // namespace moe::panels_test
