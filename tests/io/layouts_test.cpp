// SPDX-License-Identifier: Apache-2.0
// Each layout against the offset in a row-major tensor, written out index by index.
#include "moe/io/layouts.hpp"

#include <gtest/gtest.h>

#include <functional>

namespace moe::io::testing::layouts_test {
namespace {

constexpr Index E = 3, F = 5, D = 4;
using Shape3 = std::vector<Index>;
/// The element of the tensor at (expert, out, in).
using Element = std::function<Index(Index, Index, Index)>;

void expect_places(const TensorRule& rule, Shape shape, const Shape3& tensor,
                   const Element& element) {
  for (Index e = 0; e < E; ++e) {
    const Place place = place_of(rule, "t", shape, false, e, E);
    EXPECT_EQ(place.shape, tensor);
    for (Index out = 0; out < shape.rows; ++out) {
      for (Index in = 0; in < shape.cols; ++in) {
        EXPECT_EQ(place.first + out * place.row_step + in * place.col_step, element(e, out, in));
      }
    }
  }
}

TEST(Layouts, FusedHasTheRowsOfGateAboveThoseOfUp) {
  const auto at = [](Index e, Index row, Index in) { return (e * 2 * F + row) * D + in; };
  expect_places(layouts::fused.gate, {F, D}, {E, 2 * F, D},
                [&](Index e, Index out, Index in) { return at(e, out, in); });
  expect_places(layouts::fused.up, {F, D}, {E, 2 * F, D},
                [&](Index e, Index out, Index in) { return at(e, F + out, in); });
  expect_places(layouts::fused.down, {D, F}, {E, D, F},
                [](Index e, Index out, Index in) { return (e * D + out) * F + in; });
}

TEST(Layouts, TransposedHasTheColumnsOfGateBeforeThoseOfUp) {
  const auto at = [](Index e, Index in, Index col) { return (e * D + in) * 2 * F + col; };
  expect_places(layouts::fused_transposed.gate, {F, D}, {E, D, 2 * F},
                [&](Index e, Index out, Index in) { return at(e, in, out); });
  expect_places(layouts::fused_transposed.up, {F, D}, {E, D, 2 * F},
                [&](Index e, Index out, Index in) { return at(e, in, F + out); });
  expect_places(layouts::fused_transposed.down, {D, F}, {E, F, D},
                [](Index e, Index out, Index in) { return (e * F + in) * D + out; });
}

TEST(Layouts, GptOssHasColumnsOfGateAndUpInTurn) {
  const auto at = [](Index e, Index in, Index col) { return (e * D + in) * 2 * F + col; };
  expect_places(layouts::gpt_oss_names.gate, {F, D}, {E, D, 2 * F},
                [&](Index e, Index out, Index in) { return at(e, in, 2 * out); });
  expect_places(layouts::gpt_oss_names.up, {F, D}, {E, D, 2 * F},
                [&](Index e, Index out, Index in) { return at(e, in, 2 * out + 1); });
}

TEST(Layouts, InklingHasRowsOfGateAndUpInTurn) {
  expect_places(layouts::inkling_names.up, {F, D}, {E, 2 * F, D},
                [](Index e, Index out, Index in) { return (e * 2 * F + 2 * out + 1) * D + in; });
}

TEST(Layouts, DbrxHasTheExpertsBelowEachOther) {
  expect_places(layouts::dbrx_names.up, {F, D}, {E * F, D},
                [](Index e, Index out, Index in) { return (e * F + out) * D + in; });
  expect_places(layouts::dbrx_names.down, {D, F}, {E * F, D},
                [](Index e, Index out, Index in) { return (e * F + in) * D + out; });
}

TEST(Layouts, ABiasIsAVectorOfOutputs) {
  const Place gate = place_of(layouts::gpt_oss_names.gate_bias, "t", {1, F}, true, 2, E);
  EXPECT_EQ(gate.shape, (Shape3{E, 2 * F}));
  EXPECT_EQ(gate.first, 2 * 2 * F);
  EXPECT_EQ(gate.col_step, 2);
  const Place up = place_of(layouts::fused.up_bias, "t", {1, F}, true, 1, E);
  EXPECT_EQ(up.first, 2 * F + F);
  EXPECT_EQ(up.col_step, 1);
}

TEST(Layouts, AMatrixOfItsOwnIsTheWholeTensor) {
  const Place place = place_of(layouts::projections.up, "t", {F, D}, false);
  EXPECT_EQ(place.shape, (Shape3{F, D}));
  EXPECT_EQ(place.first, 0);
  EXPECT_EQ(place.row_step, D);
  EXPECT_EQ(place.col_step, 1);
}

}  // namespace
}  // namespace moe::io::testing::layouts_test
