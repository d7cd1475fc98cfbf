// SPDX-License-Identifier: Apache-2.0
// Blocks of a GGUF file in the storage that is exactly them: byte for byte, whatever the bytes.
#include "moe/io/gguf_codes.hpp"

#include <random>

#include "gguf_bytes.hpp"
#include "model_folder.hpp"
#include "moe/io/load_layer.hpp"
#include "moe/storage.hpp"

namespace moe::io::testing::gguf_codes_test {
namespace {

constexpr Index E = 2, D = 256, F = 512;

GgufTensor blocks(const std::string& name, std::vector<std::uint64_t> dims, std::uint32_t type,
                  std::size_t scale_bytes, std::uint32_t seed) {
  std::mt19937 random(seed);
  const auto [elements, bytes] = block_size(*io::detail::dtype_of_gguf(type));
  GgufTensor tensor{name, dims, type, {}};
  for (std::size_t block = 0; block < dims[0] * dims[1] * dims[2] / elements; ++block) {
    for (std::size_t i = 0; i < bytes; ++i) {
      tensor.data.push_back(static_cast<std::byte>(random()));
    }
    // Scales that are finite, negative ones included: a byte, a half or two.
    std::byte* const first = &tensor.data[tensor.data.size() - bytes];
    if (scale_bytes == 1) {
      first[0] = static_cast<std::byte>(100 + random() % 30);
    }
    for (std::size_t high = 1; high < scale_bytes; high += 2) {
      first[high] = static_cast<std::byte>((random() % 2) * 0x80 + 0x20 + random() % 8);
    }
  }
  return tensor;
}

class GgufCodes : public ModelFolder {
 protected:
  /// Matrices down may be of another type: floats.
  fs::path write_model(std::uint32_t type, std::size_t scale_bytes,
                       bool down_in_floats = false) const {
    GgufFile file{.keys = {{"general.architecture", gguf_text("qwen3moe")},
                           {"qwen3moe.embedding_length", gguf_u32(D)},
                           {"qwen3moe.expert_feed_forward_length", gguf_u32(F)},
                           {"qwen3moe.expert_count", gguf_u32(E)},
                           {"qwen3moe.expert_used_count", gguf_u32(1)}},
                  .tensors = {gguf_floats("blk.0.ffn_gate_inp.weight", {D, E}),
                              blocks("blk.0.ffn_gate_exps.weight", {D, F, E}, type, scale_bytes, 1),
                              blocks("blk.0.ffn_up_exps.weight", {D, F, E}, type, scale_bytes, 2),
                              down_in_floats ? gguf_floats("blk.0.ffn_down_exps.weight", {F, D, E})
                                             : blocks("blk.0.ffn_down_exps.weight", {F, D, E}, type,
                                                      scale_bytes, 3)}};
    return write("m.gguf", bytes_of(file));
  }

  /// What is packed is what the file says, with no code moved to another: unpacked it is the same
  /// to the bit but for the sign of zero.
  template <Storage S>
  void expect_exact(std::uint32_t type, std::size_t scale_bytes) const {
    const fs::path path = write_model(type, scale_bytes);
    const auto packed = unpack(load_packed<S>(path, 0));
    const auto layer = load_layer<float>(path, 0);
    for (std::size_t e = 0; e < static_cast<std::size_t>(E); ++e) {
      const auto& want = layer.experts()[e].params();
      const auto& got = packed.experts()[e].params();
      EXPECT_EQ(got.gate, want.gate);
      EXPECT_EQ(got.up, want.up);
      EXPECT_EQ(got.down, want.down);
    }
  }
};

// As files of "Q4_K_M" have it in some layers.
TEST_F(GgufCodes, OfGateAndUpAreKeptWhereDownIsOfAnotherType) {
  const fs::path path = write_model(12, 4, true);
  const auto layer = load_layer<float>(path, 0);
  const auto kept = unpack(load_packed<q4_k>(path, 0)), packed = unpack(pack<q4_k>(layer));
  for (std::size_t e = 0; e < static_cast<std::size_t>(E); ++e) {
    const auto& got = kept.experts()[e].params();
    EXPECT_EQ(got.gate, layer.experts()[e].params().gate);
    EXPECT_EQ(got.up, layer.experts()[e].params().up);
    EXPECT_EQ(got.down, packed.experts()[e].params().down);
    EXPECT_NE(got.down, layer.experts()[e].params().down);
  }
}

TEST_F(GgufCodes, OfQ8_0AreThoseOfTheStorage) { expect_exact<q8>(8, 2); }
TEST_F(GgufCodes, OfQ4_0AreThoseOfTheStorage) { expect_exact<q4>(2, 2); }
TEST_F(GgufCodes, OfQ4_KAreThoseOfTheStorage) { expect_exact<q4_k>(12, 4); }
TEST_F(GgufCodes, OfMxfp4AreThoseOfTheStorage) { expect_exact<mxfp4>(39, 1); }

TEST_F(GgufCodes, OfAnotherTypeAreNone) {
  const Gguf file = Gguf::map(write_model(8, 2));
  const TensorView& view = file.at("blk.0.ffn_up_exps.weight");
  const Place place{
      .tensor = view.name, .shape = view.shape, .first = 0, .row_step = D, .col_step = 1};
  const FileTensor tensor{view, file.file()};
  EXPECT_FALSE(coded_blocks<Q4Format>(tensor, place, {F, D}));
  EXPECT_FALSE(coded_blocks<Mxfp4Format>(tensor, place, {F, D}));
  const auto coded = coded_blocks<Q8Format>(tensor, place, {F, D});
  ASSERT_TRUE(coded);
  for (Index row = 0; row < F; ++row) {
    for (Index number = 0; number < D / 32; ++number) {
      const std::byte* const block = view.data.data() + (row * (D / 32) + number) * 34;
      EXPECT_EQ(std::memcmp(&coded->block(row, number).scale, block, 2), 0);
      for (int k = 0; k < 32; ++k) {
        EXPECT_EQ(coded->block(row, number).code[static_cast<std::size_t>(k)],
                  static_cast<std::int8_t>(block[2 + k]) + 128);
      }
    }
  }
}

/// A block of ggml's again.
std::array<std::byte, 144> q4_k_bytes(const CodedMatrix<Q4KFormat>::Block& block) {
  std::array<std::byte, 144> bytes{};
  const auto add = [&](std::size_t at, unsigned bits) {
    bytes[at] |= static_cast<std::byte>(bits);
  };
  std::memcpy(bytes.data(), &block.scale.scale, 2);
  std::memcpy(bytes.data() + 2, &block.scale.minimum, 2);
  for (std::size_t group = 0; group < 8; ++group) {
    const unsigned scale = block.scale.scales[group], minimum = block.scale.minima[group];
    if (group < 4) {
      add(4 + group, scale);
      add(8 + group, minimum);
    } else {
      add(8 + group, (scale & 15u) | (minimum & 15u) << 4);
      add(group, scale >> 4 << 6);
      add(4 + group, minimum >> 4 << 6);
    }
    for (std::size_t i = 0; i < 32; ++i) {
      const unsigned code = block.code[32 * group + i];
      add(16 + group / 2 * 32 + i, code << group % 2 * 4);
    }
  }
  return bytes;
}

TEST_F(GgufCodes, OfQ4_KAreKeptBitForBit) {
  const Gguf file = Gguf::map(write_model(12, 4));
  for (const TensorView& view : file.tensors()) {
    if (view.dtype != DType::Q4_K) {
      continue;
    }
    const Index cols = view.shape.back(), rows = view.shape[1];
    const Place place{.tensor = view.name,
                      .shape = view.shape,
                      .first = rows * cols,  // of the second expert
                      .row_step = cols,
                      .col_step = 1};
    const auto coded = coded_blocks<Q4KFormat>({view, file.file()}, place, {rows, cols});
    ASSERT_TRUE(coded);
    const std::byte* from = view.data.data() + rows * cols / 256 * 144;
    for (Index row = 0; row < rows; ++row) {
      for (Index number = 0; number < cols / 256; ++number, from += 144) {
        ASSERT_EQ(std::memcmp(q4_k_bytes(coded->block(row, number)).data(), from, 144), 0);
      }
    }
  }
}

}  // namespace
}  // namespace moe::io::testing::gguf_codes_test
