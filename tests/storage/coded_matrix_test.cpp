// SPDX-License-Identifier: Apache-2.0
// Codes and scales that somebody else has made go into a storage bit for bit.
#include "moe/storage/coded_matrix.hpp"

#include <gtest/gtest.h>

#include <random>

#include "../support/layer_step.hpp"
#include "../support/storages.hpp"
#include "moe/layers/packed_layer.hpp"

namespace moe::coded_matrix_test {
namespace {

template <class S>
class CodedMatrices : public ::testing::Test {};
TYPED_TEST_SUITE(CodedMatrices, testing::CodedStorages);

template <class S>
using FormatOf = typename PackedMatrix<S>::Format;

/// Every code, and scales of any size; `number` tells one matrix from another.
template <class F>
CodedMatrix<F> random_codes(Index rows, Index cols, unsigned number) {
  std::mt19937 random(number);
  CodedMatrix<F> made(rows, cols);
  for (Index row = 0; row < rows; ++row) {
    for (Index k = 0; k < cols; ++k) {
      auto& block = made.block(row, k / made.block_size);
      block.code[static_cast<std::size_t>(k % made.block_size)] =
          static_cast<std::uint8_t>(random() % (1u << F::bits));
      const auto half = [&] {
        return Eigen::half(0.01f * (static_cast<float>(random() % 100) - 50.5f));
      };
      if constexpr (std::same_as<F, Mxfp4Format>) {
        block.scale = static_cast<std::uint8_t>(119 + random() % 9);
      } else if constexpr (std::same_as<F, Q4KFormat>) {
        block.scale.scale = half();
        block.scale.minimum = half();
        block.scale.scales[static_cast<std::size_t>(k % 8)] =
            static_cast<std::uint8_t>(random() % 64);
        block.scale.minima[static_cast<std::size_t>(k % 8)] =
            static_cast<std::uint8_t>(random() % 64);
      } else {
        block.scale = half();
      }
    }
  }
  return made;
}

template <class F>
Matrix<float> decode(const CodedMatrix<F>& coded) {
  Matrix<float> weight(coded.rows(), coded.cols());
  for (Index row = 0; row < coded.rows(); ++row) {
    for (Index k = 0; k < coded.cols(); ++k) {
      const auto& block = coded.block(row, k / coded.block_size);
      const unsigned code = block.code[static_cast<std::size_t>(k % coded.block_size)];
      if constexpr (std::same_as<F, Q4KFormat>) {
        const auto part = static_cast<std::size_t>(k % 256 / 32);
        const auto multiple = [](Eigen::half of, std::uint8_t number) {
          return double{kernels::widen(of)} * number;
        };
        weight(row, k) =
            static_cast<float>(multiple(block.scale.scale, block.scale.scales[part]) * code -
                               multiple(block.scale.minimum, block.scale.minima[part]));
      } else {
        weight(row, k) =
            F::scale_of(block.scale) * (F::unit * static_cast<float>(F::number(code) - F::bias));
      }
    }
  }
  return weight;
}

TYPED_TEST(CodedMatrices, ArePackedBitForBit) {
  using F = FormatOf<TypeParam>;
  const auto gate = random_codes<F>(70, 100, 1), up = random_codes<F>(70, 100, 2);
  const PackedMatrix<TypeParam> both({&gate, &up});
  EXPECT_EQ(both.unpack(0), decode(gate));
  EXPECT_EQ(both.unpack(1), decode(up));
  for (Index out = 0; out < 70; ++out) {
    constexpr Index size = up.block_size;
    for (Index k = 0; k < up.blocks_of_row() * size; ++k) {
      const auto& packed = *both.panel(out / both.share(), k / size * size, size, nullptr);
      const Index col = both.share() + out % both.share();
      const auto& block = up.block(out, k / size);
      ASSERT_EQ(packed.code_at(col, k % size), block.code[static_cast<std::size_t>(k % size)]);
      if constexpr (std::same_as<F, Q4KFormat>) {
        ASSERT_EQ(packed.scale[col], block.scale.scale);
        ASSERT_EQ(packed.minimum[col], block.scale.minimum);
        for (std::size_t part = 0; part < 8; ++part) {
          ASSERT_EQ(packed.part[part].scale[col], block.scale.scales[part]);
          ASSERT_EQ(packed.part[part].minimum[col], block.scale.minima[part]);
        }
      } else {
        ASSERT_EQ(packed.scale[col], block.scale);
      }
    }
  }
}

TYPED_TEST(CodedMatrices, AreZerosAtFirst) {
  const CodedMatrix<FormatOf<TypeParam>> zeros(3, 50);
  EXPECT_EQ(PackedMatrix<TypeParam>({&zeros}).unpack(0), Matrix<float>::Zero(3, 50));
  EXPECT_EQ(zeros.size(), 150);
  EXPECT_EQ(zeros.blocks_of_row(), zeros.block_size > 32 ? 1 : 2);
}

TYPED_TEST(CodedMatrices, OfAnExpertGiveWhatItsValuesGive) {
  using F = FormatOf<TypeParam>;
  ExpertConfig config;
  config.bias = true;
  const Matrix<float> bias = testing::random_matrix<float>(1, 53, 4);
  const CodedExpert<F> coded{.params = {.gate = random_codes<F>(53, 96, 1),
                                        .up = random_codes<F>(53, 96, 2),
                                        .down = random_codes<F>(40, 53, 3),
                                        .gate_bias = bias,
                                        .up_bias = 2 * bias,
                                        .down_bias = bias.leftCols(40),
                                        .output_gate = {}},
                             .config = config};
  const Expert<float> expert = PackedExpert<TypeParam>(coded).unpack();
  EXPECT_EQ(expert.params().gate, decode(coded.params.gate));
  EXPECT_EQ(expert.params().up, decode(coded.params.up));
  EXPECT_EQ(expert.params().down, decode(coded.params.down));
  EXPECT_EQ(expert.params().up_bias, coded.params.up_bias);
  CodedExpert<F> bad = coded;
  bad.params.down.resize(40, 52);
  EXPECT_THROW(PackedExpert<TypeParam>{bad}, std::invalid_argument);
  bad = coded;
  bad.params.gate_bias.resize(0, 0);
  EXPECT_THROW(PackedExpert<TypeParam>{bad}, std::invalid_argument);
}

TEST(CodedMatrix, RefusesCodesThatDoNotFit) {
  CodedMatrix<Q4Format> coded(1, 32);
  coded.block(0, 0).code[5] = 16;
  EXPECT_THROW(PackedMatrix<q4>({&coded}), std::invalid_argument);
}

TEST(CodedMatrix, RefusesMultiplesOfMoreThanSixBits) {
  CodedMatrix<Q4KFormat> coded(1, 256);
  coded.block(0, 0).scale.scales[7] = 63;
  coded.block(0, 0).scale.minima[0] = 63;
  EXPECT_NO_THROW(PackedMatrix<q4_k>({&coded}));
  coded.block(0, 0).scale.scales[7] = 64;
  EXPECT_THROW(PackedMatrix<q4_k>({&coded}), std::invalid_argument);
  coded.block(0, 0).scale.scales[7] = 0;
  coded.block(0, 0).scale.minima[0] = 255;
  EXPECT_THROW(PackedMatrix<q4_k>({&coded}), std::invalid_argument);
}

}  // namespace
}  // namespace moe::coded_matrix_test
