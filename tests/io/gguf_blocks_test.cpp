// SPDX-License-Identifier: Apache-2.0
// Blocks against a decoder that takes one bit after the other, on bytes of every kind; and against
// values of ggml's that are recorded.
#include "moe/io/gguf_blocks.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>
#include <random>
#include <vector>

#include "moe/io/gguf.hpp"
#include "moe/io/safetensors.hpp"

namespace moe::io::gguf_blocks_test {
namespace {

using Bytes = std::vector<std::byte>;

constexpr DType types[] = {DType::Q8_0, DType::Q4_0, DType::Q5_0, DType::MXFP4,
                           DType::Q4_K, DType::Q5_K, DType::Q6_K};

/// A block as bits, of which the first is the lowest of the first byte.
class Bits {
 public:
  explicit Bits(const std::byte* block) : block_(block) {}
  /// `count` of them from bit `begin` of byte `byte` on.
  unsigned of(int byte, int begin, int count) const {
    unsigned value = 0;
    for (int i = 0; i < count; ++i) {
      const int at = begin + i;
      const unsigned bit = std::to_integer<unsigned>(block_[byte + at / 8]) >> (at % 8) & 1U;
      value |= bit << i;
    }
    return value;
  }
  int signed_byte(int byte) const {
    const unsigned value = of(byte, 0, 8);
    return value < 128 ? static_cast<int>(value) : static_cast<int>(value) - 256;
  }
  double half(int byte) const {
    const unsigned fraction = of(byte, 0, 10), exponent = of(byte, 10, 5);
    const double magnitude = exponent == 0 ? std::ldexp(static_cast<double>(fraction), -24)
                             : exponent == 31
                                 ? (fraction == 0 ? HUGE_VAL : std::nan(""))
                                 : std::ldexp(1024.0 + fraction, static_cast<int>(exponent) - 25);
    return of(byte, 15, 1) == 1 ? -magnitude : magnitude;
  }

 private:
  const std::byte* block_;
};

/// Scale (first) or minimum of one of the 8 groups of Q4_K and Q5_K: 6 bits that are written out,
/// the lower four and the upper two of which may lie apart.
unsigned six_bits(const Bits& bits, int group, bool is_scale) {
  if (group < 4) {
    return bits.of(4 + group + (is_scale ? 0 : 4), 0, 6);
  }
  const unsigned low = bits.of(4 + 4 + group, is_scale ? 0 : 4, 4);
  const unsigned high = bits.of(is_scale ? 4 + group - 4 : 4 + group, 6, 2);
  return low + 16 * high;
}

/// The four bits of element i that the first half of 16 or 32 bytes has in their low halves.
unsigned four_bits(const Bits& bits, int begin, int i, int bytes) {
  return bits.of(begin + i % bytes, i < bytes ? 0 : 4, 4);
}

double plain(DType dtype, const std::byte* block, int i) {
  const Bits bits(block);
  const int group = i / 32, pair = i / 64;
  switch (dtype) {
    case DType::Q8_0:
      return bits.half(0) * bits.signed_byte(2 + i);
    case DType::Q4_0:
      return bits.half(0) * (static_cast<int>(four_bits(bits, 2, i, 16)) - 8);
    case DType::Q5_0:
      return bits.half(0) *
             (static_cast<int>(four_bits(bits, 6, i, 16) + 16 * bits.of(2, i, 1)) - 16);
    case DType::MXFP4: {
      constexpr double values[] = {0, 0.5, 1, 1.5, 2, 3, 4, 6};
      const unsigned code = four_bits(bits, 1, i, 16), exponent = bits.of(0, 0, 8);
      const double value = std::ldexp(values[code % 8], static_cast<int>(exponent) - 127);
      return exponent == 255 ? std::nan("") : code < 8 ? value : -value;
    }
    case DType::Q4_K:
      return bits.half(0) * six_bits(bits, group, true) *
                 four_bits(bits, 16 + 32 * pair, i % 64, 32) -
             bits.half(2) * six_bits(bits, group, false);
    case DType::Q5_K:
      return bits.half(0) * six_bits(bits, group, true) *
                 (four_bits(bits, 48 + 32 * pair, i % 64, 32) +
                  16 * bits.of(16 + i % 32, group, 1)) -
             bits.half(2) * six_bits(bits, group, false);
    default: {
      const int half = i / 128, row = i % 128 / 32, l = i % 32;
      const unsigned low = bits.of(64 * half + 32 * (row % 2) + l, row < 2 ? 0 : 4, 4);
      const unsigned high = bits.of(128 + 32 * half + l, 2 * row, 2);
      return bits.half(208) * bits.signed_byte(192 + i / 16) *
             (static_cast<int>(low + 16 * high) - 32);
    }
  }
}

void expect_same(double got, double want, const char* what, DType dtype, int i) {
  EXPECT_TRUE(moe::detail::equals(got, want) || (std::isnan(got) && std::isnan(want)))
      << name(dtype) << ", " << what << " " << i << ": " << got << ", expected " << want;
}

void expect_decoded(DType dtype, const Bytes& blocks) {
  const auto [elements, bytes] = block_size(dtype);
  const std::size_t count = blocks.size() / bytes;
  std::vector<double> exact(count * elements);
  std::vector<float> once(exact.size());
  std::vector<bf16> narrow(exact.size());
  std::vector<Eigen::half> half(exact.size());
  ASSERT_TRUE(decode_blocks(dtype, blocks.data(), count, exact.data()));
  ASSERT_TRUE(decode_blocks(dtype, blocks.data(), count, once.data()));
  ASSERT_TRUE(decode_blocks(dtype, blocks.data(), count, narrow.data()));
  ASSERT_TRUE(decode_blocks(dtype, blocks.data(), count, half.data()));
  for (std::size_t at = 0; at < exact.size(); ++at) {
    const int i = static_cast<int>(at % elements);
    const double want = plain(dtype, blocks.data() + at / elements * bytes, i);
    expect_same(exact[at], want, "double", dtype, i);
    expect_same(static_cast<double>(once[at]), static_cast<double>(static_cast<float>(want)),
                "float", dtype, i);
    expect_same(static_cast<double>(narrow[at]), static_cast<double>(kernels::convert<bf16>(want)),
                "bfloat16", dtype, i);
    expect_same(static_cast<double>(half[at]),
                static_cast<double>(kernels::convert<Eigen::half>(want)), "half", dtype, i);
  }
}

TEST(GgufBlocks, AreTheValuesOfTheirBits) {
  std::mt19937 random(1);
  for (const DType dtype : types) {
    EXPECT_TRUE(is_decodable(dtype));
    Bytes blocks(200 * block_size(dtype).bytes);
    for (std::byte& byte : blocks) {
      byte = static_cast<std::byte>(random());
    }
    expect_decoded(dtype, blocks);
    for (const int byte : {0, 0x7f, 0x80, 0xff, 0x3c, 0x7b, 0x0f, 0xf0}) {
      expect_decoded(dtype, Bytes(block_size(dtype).bytes, static_cast<std::byte>(byte)));
    }
  }
}

TEST(GgufBlocks, OfMxfp4HaveEveryExponent) {
  for (int exponent = 0; exponent < 256; ++exponent) {
    Bytes block(17, std::byte{0x7f});
    block[0] = static_cast<std::byte>(exponent);
    block[3] = std::byte{0x19};
    expect_decoded(DType::MXFP4, block);
  }
}

TEST(GgufBlocks, OfCodeBooksAreLeftAlone) {
  double value = 7;
  const Bytes block(300);
  for (const DType dtype : {DType::F32, DType::U64, DType::Q4_1, DType::Q2_K, DType::IQ4_NL}) {
    EXPECT_FALSE(is_decodable(dtype));
    EXPECT_FALSE(decode_blocks(dtype, block.data(), 1, &value));
  }
  EXPECT_EQ(value, 7);
}

#ifdef MOE_STORAGE_DIR
// The first elements of tensors, as ggml decodes them: see golden/storage/README.md.
TEST(GgufBlocks, AreTheValuesThatAreRecorded) {
  const std::filesystem::path folder = MOE_STORAGE_DIR;
  const Gguf file = Gguf::map(folder / "gguf_b.gguf");
  const SafeTensors recorded = SafeTensors::map(folder / "gguf_b.decoded.safetensors");
  EXPECT_EQ(recorded.tensors().size(), file.tensors().size());
  for (const TensorView& want : recorded.tensors()) {
    const TensorView& got = file.at(want.name.substr(want.name.find('.') + 1));
    const Index cols = want.shape.back();
    Index rows = 1;
    for (std::size_t i = 0; i + 1 < want.shape.size(); ++i) {
      rows *= want.shape[i];
    }
    ASSERT_EQ(cols, got.shape.back());
    if (!is_block(got.dtype)) {
      continue;
    }
    const Matrix<double> values = read_matrix<double>(recorded, want.name, rows, cols);
    const auto [elements, bytes] = block_size(got.dtype);
    Matrix<double> decoded(rows, cols);
    ASSERT_TRUE(decode_blocks(got.dtype, got.data.data(),
                              static_cast<std::size_t>(values.size()) / elements, decoded.data()));
    EXPECT_EQ(decoded, values) << want.name;
  }
}
#endif

}  // namespace
}  // namespace moe::io::gguf_blocks_test
