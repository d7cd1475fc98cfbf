// SPDX-License-Identifier: Apache-2.0
// Rows of x and hidden rows in integers of 8 bits, for weights that are integers, too: blocks of 32
// numbers with a scale each, made from a row's own numbers, so that no other row has a say.
//
//   x_k = scale * code_k,    scale = max |x_k| / 127 over the block
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

#include "../types.hpp"
#include "convert.hpp"

namespace moe::inline MOE_INSTRUCTION_SET::kernels {

/// Numbers in a block, of rows and of weights.
inline constexpr Index block_size = 32;

// Which dot product of bytes the machine has, each in a file of its own: of 64 or 32 bytes without
// a sign and as many with one (VNNI; without it sums of two products in halves, of 16 bits), or of
// 16 with a sign each (NEON). A unit that has none takes plain loops.
#if defined(EIGEN_VECTORIZE_AVX512) && defined(__AVX512BW__)
#define MOE_BYTE_DOTS_OF_64
#if !defined(__AVX512VNNI__)
#define MOE_BYTE_DOTS_IN_HALVES
#endif
#elif defined(EIGEN_VECTORIZE_AVX2) && defined(__FMA__)
#define MOE_BYTE_DOTS_OF_32
#if !defined(__AVXVNNI__) || defined(__AVX512F__)
#define MOE_BYTE_DOTS_IN_HALVES
#endif
#elif defined(EIGEN_VECTORIZE_NEON) && defined(__aarch64__) && defined(__ARM_FEATURE_DOTPROD)
#define MOE_BYTE_DOTS_WITH_SIGN
#endif

// Where the dot product of bytes takes a weight without a sign and sums in 32 bits, the code of a
// weight is above its value by a bias, and the sums of a block begin with what this is too much.
// Without that instruction the sums of a small bias are made in 16 bits, two for each column: of
// the k with k % 4 < 2, and of the others.
#ifdef MOE_BYTE_DOTS_IN_HALVES
inline constexpr std::int32_t most_bias_in_halves = 12;  ///< |bias * code| of 16 k fits 16 bits
#else
inline constexpr std::int32_t most_bias_in_halves = -1;
#endif

/// Whether a byte of a weight that has its bias is made a number with a sign where it is read.
#ifdef MOE_BYTE_DOTS_WITH_SIGN
inline constexpr bool bytes_have_signs = true;
#else
inline constexpr bool bytes_have_signs = false;
#endif

/// Rounded once where the machine can, as in the vector registers: a compiler that may choose does
/// so in one place, and not in another.
inline float multiply_add(float a, float b, float c) {
#if defined(__FMA__) || defined(__ARM_FEATURE_FMA)
  return std::fma(a, b, c);
#else
  return a * b + c;
#endif
}

/// The bias of weights that have none, but minima, which the sum of a block multiplies.
inline constexpr std::int32_t none_but_sum = -1;

/// 32 numbers of a row. Its code is 0 where a number is not finite, and the scale NaN.
struct CodedInput {
  float scale;
  std::int32_t correction;  ///< what sums begin with: see most_bias_in_halves; or the bits of sum()
  std::int8_t code[block_size];

  /// scale * the sum of the codes, for weights that have minima.
  float sum() const { return std::bit_cast<float>(correction); }
};

/// For weights whose codes are above their values by the bias, or have minima.
inline std::int32_t correction_of(const std::int8_t* code, float scale, std::int32_t bias) {
  // Each code is lifted by 128 to be positive, so that a word adds up four pairs of them.
  std::uint64_t pairs = 0;
  for (Index k = 0; k < block_size; k += 8) {
    constexpr std::uint64_t even = 0x00ff00ff00ff00ffu, lift = 0x8080808080808080u;
    std::uint64_t eight;
    std::memcpy(&eight, code + k, sizeof eight);
    eight ^= lift;
    pairs += (eight & even) + (eight >> 8 & even);
  }
  const auto pair = [&](int number) {
    return static_cast<std::int32_t>(pairs >> 16 * number & 0xffffu);
  };
  const std::int32_t low = pair(0) + pair(2) - 16 * 128, high = pair(1) + pair(3) - 16 * 128;
  if (bias == none_but_sum) {
    return std::bit_cast<std::int32_t>(scale * static_cast<float>(low + high));
  }
  if (bias <= most_bias_in_halves) {
    return static_cast<std::int32_t>((static_cast<std::uint32_t>(-bias * high) << 16) |
                                     (static_cast<std::uint32_t>(-bias * low) & 0xffffu));
  } else {
    return -bias * (low + high);
  }
}

/// 32 values as a block. Off by half a step at most: |x - scale * code| <= max |x| / 254, but for a
/// rounding of float.
inline CodedInput encode_input(const float* x, std::int32_t bias) {
  constexpr std::uint32_t infinity = 0x7f800000u;
  std::uint32_t largest = 0;  // the bits of magnitudes are in the order of these, and NaN above all
  for (Index k = 0; k < block_size; ++k) {
    largest = (std::max)(largest, std::bit_cast<std::uint32_t>(x[k]) & 0x7fffffffu);
  }
  CodedInput block{};
  if (largest >= infinity) {
    block.scale = std::numeric_limits<float>::quiet_NaN();
    return block;
  }
  if (largest == 0) {
    return block;
  }
  const float most = std::bit_cast<float>(largest);
  // 127 / most would overflow for the smallest numbers.
  const float up = most < 0x1p-64f ? 0x1p64f : 1.0f;
  const float steps = 127.0f / (most * up);
  block.scale = most / 127.0f;
  // The sum with 1.5 * 2^23 rounds to an integer, ties to even, which is then the last bits.
  constexpr float shift = 12582912.0f;
  for (Index k = 0; k < block_size; ++k) {
    const auto bits = std::bit_cast<std::int32_t>(multiply_add(x[k] * up, steps, shift));
    block.code[k] = static_cast<std::int8_t>(bits - std::bit_cast<std::int32_t>(shift));
  }
  block.correction = correction_of(block.code, block.scale, bias);
  return block;
}

/// Values (size), at most 32; those that the block lacks are zeros.
inline CodedInput encode_input(const float* values, Index size, std::int32_t bias) {
  float x[block_size] = {};
  std::copy_n(values, size, x);
  return encode_input(x, bias);
}

/// The sum of products with a row (size) of floats.
inline float dot(const CodedInput* row, const float* values, Index size) {
  float sum = 0.0f;
  for (Index k = 0; k < size; ++k) {
    const CodedInput& block = row[k / block_size];
    sum =
        multiply_add(block.scale * static_cast<float>(block.code[k % block_size]), values[k], sum);
  }
  return sum;
}

/// A row (size) of W, times the weight, in blocks, one after the other.
template <class W>
void encode_row(const W* row, Index size, W weight, std::int32_t bias, CodedInput* to) {
  float values[block_size];
  const auto fill = [&](Index k, Index count) {
    for (Index i = 0; i < count; ++i) {
      values[i] = convert<float>(weight * row[k + i]);
    }
  };
  Index k = 0;
  for (; k + block_size <= size; k += block_size) {
    fill(k, block_size);  // a constant: most blocks are whole, and then copied by no loop
    *to++ = encode_input(values, bias);
  }
  if (k < size) {
    fill(k, size - k);
    *to = encode_input(values, size - k, bias);
  }
}

}  // namespace moe::inline MOE_INSTRUCTION_SET::kernels
