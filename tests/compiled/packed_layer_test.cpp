// SPDX-License-Identifier: Apache-2.0
// The packed layer of the library has the bits of that of the headers, whatever it was packed of.
#include "moe/compiled/packed_layer.hpp"

#include "compiled_case.hpp"
#include "support/matrix_near.hpp"
#include "support/throws.hpp"

namespace moe::packed_layer_test {
namespace {

using testing::full_config;
using testing::infer;
using testing::message_of;
using testing::own_set;
using testing::random_matrix;
using testing::same_bits;
using testing::Twins;

template <class S, class T>
void expect_same_in_storage() {
  const Twins<T> twins(full_config());
  const auto want = moe::pack<S>(twins.layer);
  const compiled::PackedLayer<S> got = compiled::pack<S>(twins.compiled);
  for (const Index rows : {0, 1, 23, 200}) {
    const Matrix<float> x = random_matrix<float>(rows, 37, 3);
    EXPECT_TRUE(same_bits(infer(got, x), infer(want, x))) << rows;
  }
  EXPECT_EQ(got.packed_bytes(), packed_bytes(want));
  EXPECT_EQ(got.d_in(), 37);
  EXPECT_EQ(got.d_out(), 41);
  EXPECT_EQ(got.num_experts(), 5);
  EXPECT_EQ(got.instruction_set(), own_set);
}

/// Of a layer in T, in every storage that the library has.
template <class T, class... S>
void expect_same_when_packed(std::type_identity<compiled::StorageList<S...>>) {
  (expect_same_in_storage<S, T>(), ...);
}

template <class T>
void expect_same_when_packed() {
  expect_same_when_packed<T>(std::type_identity<compiled::Storages>());
}

TEST(CompiledPackedLayer, HasTheBitsOfTheHeaders) { expect_same_when_packed<float>(); }

TEST(CompiledPackedLayer, IsPackedOfLayersOfOtherScalars) {
  expect_same_when_packed<double>();
  expect_same_when_packed<bf16>();
}

TEST(CompiledPackedLayer, IsSharedByItsCopiesAndOutlivesItsLayer) {
  std::optional<compiled::MoELayer<float>> layer(std::in_place, full_config(), 1);
  auto packed = compiled::pack<float>(*layer);
  const Matrix<float> x = random_matrix<float>(23, 37, 3), want = infer(*layer, x);
  layer.reset();
  const auto copy = packed;
  EXPECT_TRUE(same_bits(infer(packed, x), want));
  const auto moved = std::move(packed);
  EXPECT_TRUE(same_bits(infer(copy, x), want) && same_bits(infer(moved, x), want));
  EXPECT_EQ(message_of([&] { packed.d_in(); }), "PackedLayer: it was moved from");
}

TEST(CompiledPackedLayer, RefusesWhatDoesNotFit) {
  const auto packed = compiled::pack<bf16>(compiled::MoELayer<float>(full_config(), 1));
  compiled::PackedLayer<bf16>::Scratch scratch;
  Matrix<float> y(3, 41);
  EXPECT_EQ(message_of([&] { packed.forward(Matrix<float>::Ones(3, 36), y, scratch); }),
            "MoELayer: x is (3, 36), expected (3, 37)");
}

}  // namespace
}  // namespace moe::packed_layer_test
