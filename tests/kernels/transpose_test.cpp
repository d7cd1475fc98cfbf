// SPDX-License-Identifier: Apache-2.0
// A square in registers against one that is transposed element by element.
#include "moe/kernels/transpose.hpp"

#include <gtest/gtest.h>

#include <cstring>

#include "../support/random_matrix.hpp"

namespace moe::kernels::transpose_test {
namespace {

template <class T>
class LoadTransposed : public ::testing::Test {};
using Scalars = ::testing::Types<float, double, bf16>;
TYPED_TEST_SUITE(LoadTransposed, Scalars);

TYPED_TEST(LoadTransposed, PutsStepKOfEachRowIntoPacketK) {
  using Tile = RegisterTile<TypeParam>;
  constexpr Index size = Tile::packet_size, step = Tile::step;
  const Matrix<TypeParam> m =
      testing::random_matrix<float>(size, size * step + 3, 1).template cast<TypeParam>();
  const TypeParam* rows[size];
  for (Index i = 0; i < size; ++i) {
    rows[i] = &m(i, 3);  // of any alignment
  }
  const Square<TypeParam> square = load_transposed<TypeParam>(rows);
  for (Index k = 0; k < size; ++k) {
    TypeParam got[size * step];
    store_step(got, square.packet[k]);
    for (Index row = 0; row < size; ++row) {
      ASSERT_EQ(std::memcmp(static_cast<const void*>(got + row * step),
                            static_cast<const void*>(&m(row, 3 + k * step)),
                            static_cast<std::size_t>(step) * sizeof(TypeParam)),
                0)
          << "row " << row << ", step " << k;
    }
  }
}

}  // namespace
}  // namespace moe::kernels::transpose_test
