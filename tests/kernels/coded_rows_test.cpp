// SPDX-License-Identifier: Apache-2.0
// Rows in integers of 8 bits: how near they are, and what is not a number.
#include "moe/kernels/coded_rows.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>
#include <vector>

namespace moe::kernels::coded_rows_test {
namespace {

TEST(CodedInput, IsOffByHalfAStepAtMostAtEveryMagnitude) {
  std::mt19937 random(3);
  std::normal_distribution<float> normal;
  for (const float magnitude : {1e-44f, 1e-38f, 1e-30f, 1e-9f, 1.0f, 1e9f, 1e30f, 1e37f}) {
    float values[block_size], most = 0.0f;
    for (float& value : values) {
      value = magnitude * normal(random);
      most = std::fmax(most, std::abs(value));
    }
    const CodedInput block = encode_input(values, block_size, 8);
    for (Index k = 0; k < block_size; ++k) {
      const double off = std::abs(double{values[k]} - double{block.scale} * block.code[k]);
      // A scale below the normal numbers of float is itself rounded to a multiple of 1.4e-45.
      EXPECT_LE(off, double{most} / 254 * (1 + 1e-5) + 127 * 0.7e-45) << magnitude << ", " << k;
    }
  }
}

#if defined(__FMA__) || defined(__ARM_FEATURE_FMA)
TEST(CodedInput, RoundsTheExactProductWhereverItIsInlined) {
  std::mt19937 random(7);
  std::uniform_real_distribution<float> uniform(-1.0f, 1.0f);
  for (int round = 0; round < 50000; ++round) {  // some products round to a tie, and are none
    float values[block_size] = {1.0f};
    for (Index k = 1; k < block_size; ++k) {
      values[k] = uniform(random);
    }
    const CodedInput block = encode_input(values, block_size, 8);
    for (Index k = 0; k < block_size; ++k) {
      ASSERT_EQ(block.code[k], std::nearbyint(127.0 * double{values[k]})) << values[k];
    }
  }
}
#endif

TEST(CodedInput, OfAFewValuesHasZerosBehindThem) {
  const float values[] = {1.0f, -2.0f, 0.5f};
  const CodedInput block = encode_input(values, 3, 8);
  EXPECT_EQ(block.code[1], -127);
  for (Index k = 3; k < block_size; ++k) {
    EXPECT_EQ(block.code[k], 0);
  }
}

TEST(CodedInput, HasItsSumForWeightsThatHaveMinima) {
  const float values[] = {1.0f, -2.0f, 0.5f, -127.0f};
  const CodedInput block = encode_input(values, 4, none_but_sum);
  EXPECT_EQ(block.scale, 1.0f);
  EXPECT_EQ(block.sum(), 1.0f - 2.0f + 0.0f - 127.0f);
  const float zeros[block_size] = {};
  EXPECT_EQ(encode_input(zeros, block_size, none_but_sum).sum(), 0.0f);
}

TEST(CodedInput, OfZerosHasNoScale) {
  const float values[block_size] = {};
  const CodedInput block = encode_input(values, block_size, 8);
  EXPECT_EQ(block.scale, 0.0f);
  EXPECT_EQ(block.correction, 0);
}

TEST(CodedInput, HasTheScaleNanWhereANumberIsNotFinite) {
  constexpr float infinity = std::numeric_limits<float>::infinity();
  for (const float bad : {infinity, -infinity, std::numeric_limits<float>::quiet_NaN()}) {
    for (Index at = 0; at < block_size; ++at) {
      float values[block_size] = {1.0f, 2.0f};
      values[at] = bad;
      const CodedInput block = encode_input(values, block_size, 8);
      EXPECT_TRUE(std::isnan(block.scale)) << bad << " at " << at;
      EXPECT_EQ(block.code[0], 0);
    }
  }
}

TEST(CodedInput, StandsAtItsPlaceInARowAndOnlyThere) {
  std::vector<double> row(80, 1.0);
  row[40] = std::numeric_limits<double>::quiet_NaN();
  CodedInput blocks[3];
  encode_row(row.data(), 80, 2.0, 8, blocks);
  EXPECT_FLOAT_EQ(blocks[0].scale, 2.0f / 127);
  EXPECT_TRUE(std::isnan(blocks[1].scale));
  EXPECT_FLOAT_EQ(blocks[2].scale, 2.0f / 127);
  EXPECT_EQ(blocks[2].code[15], 127);
  EXPECT_EQ(blocks[2].code[16], 0);
}

TEST(CodedInput, MultipliesFloatsAsItsNumbers) {
  std::mt19937 random(5);
  std::normal_distribution<float> normal;
  float row[75], other[75];
  double want = 0.0;
  for (Index k = 0; k < 75; ++k) {
    row[k] = normal(random), other[k] = normal(random);
    want += double{row[k]} * double{other[k]};
  }
  CodedInput blocks[3];
  encode_row(row, 75, 1.0f, 8, blocks);
  EXPECT_NEAR(dot(blocks, other, 75), want, 0.2);
}

}  // namespace
}  // namespace moe::kernels::coded_rows_test
