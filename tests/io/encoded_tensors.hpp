// SPDX-License-Identifier: Apache-2.0
// Weights in the conventions of published checkpoints, written bit by bit from random codes, with
// their values put together by hand: nothing here is of the library's decoder.
#pragma once

#include <cmath>
#include <random>

#include "model_folder.hpp"

namespace moe::io::testing {

/// The tensors of a weight (.., N, K), and its values (.. N, K).
struct EncodedTensors {
  NewTensors tensors;
  Matrix<double> values;
};

class RandomCodes {
 public:
  explicit RandomCodes(unsigned seed) : engine_(seed) {}
  unsigned below(unsigned limit) { return static_cast<unsigned>(engine_() % limit); }

 private:
  std::mt19937 engine_;
};

inline double value_of_e2m1(unsigned code) {
  const double magnitudes[] = {0, 0.5, 1, 1.5, 2, 3, 4, 6};
  return code < 8 ? magnitudes[code] : -magnitudes[code - 8];
}
inline double value_of_e4m3(unsigned code) {
  const int exponent = static_cast<int>(code >> 3 & 15), fraction = static_cast<int>(code & 7);
  const double magnitude =
      exponent == 0 ? std::ldexp(fraction, -9) : std::ldexp(8 + fraction, exponent - 10);
  return code < 128 ? magnitude : -magnitude;
}
inline Index part_of_shape(const std::vector<Index>& shape, std::size_t from_end) {
  Index size = 1;
  for (std::size_t i = 0; i + from_end < shape.size(); ++i) {
    size *= shape[i];
  }
  return size;
}
/// The shape with other dimensions in the place of its last two.
inline std::vector<Index> ending_in(std::vector<Index> shape, const std::vector<Index>& last) {
  shape.resize(shape.size() - 2);
  shape.insert(shape.end(), last.begin(), last.end());
  return shape;
}

/// In blocks of 128 x 128 with a scale of this name: F32, or F8_E8M0.
inline EncodedTensors fp8_blocks(const std::string& name, const std::vector<Index>& shape,
                                 const std::string& scale, bool powers = false) {
  RandomCodes random(static_cast<unsigned>(shape.back()));
  const Index rows = *(shape.end() - 2), cols = shape.back(), experts = part_of_shape(shape, 2);
  const Index block_rows = (rows + 127) / 128, block_cols = (cols + 127) / 128;
  std::vector<float> floats;
  std::vector<std::uint8_t> exponents, codes;
  for (Index i = 0; i < experts * block_rows * block_cols; ++i) {
    exponents.push_back(static_cast<std::uint8_t>(100 + random.below(50)));
    floats.push_back(powers ? std::ldexp(1.0f, exponents.back() - 127)
                            : 0.001f * static_cast<float>(1 + random.below(9999)));
  }
  EncodedTensors made{.tensors = {}, .values = Matrix<double>(experts * rows, cols)};
  for (Index row = 0; row < experts * rows; ++row) {
    for (Index k = 0; k < cols; ++k) {
      unsigned code = random.below(256);
      code -= code % 128 == 127 ? 1u : 0u;  // no NaN
      codes.push_back(static_cast<std::uint8_t>(code));
      const Index block = (row / rows * block_rows + row % rows / 128) * block_cols + k / 128;
      made.values(row, k) =
          value_of_e4m3(code) * static_cast<double>(floats[static_cast<std::size_t>(block)]);
    }
  }
  const std::vector<Index> blocks = ending_in(shape, {block_rows, block_cols});
  made.tensors[name] = tensor_of("F8_E4M3", shape, codes);
  made.tensors[scale] =
      powers ? tensor_of("F8_E8M0", blocks, exponents) : tensor_of("F32", blocks, floats);
  return made;
}

/// Codes of 4 bits, two in a byte, and a scale for each `group` of them, which is E8M0 for 32 and
/// E4M3 for 16.
inline EncodedTensors e2m1_groups(const std::vector<Index>& shape, Index group,
                                  std::pair<std::string, NewTensor> codes,
                                  std::pair<std::string, NewTensor> scale) {
  RandomCodes random(static_cast<unsigned>(shape.back() + group));
  const Index rows = part_of_shape(shape, 1), cols = shape.back();
  EncodedTensors made{.tensors = {}, .values = Matrix<double>(rows, cols)};
  std::vector<std::uint8_t> bytes(static_cast<std::size_t>(rows * cols / 2)), scales;
  for (Index row = 0; row < rows; ++row) {
    double factor = 0;
    for (Index k = 0; k < cols; ++k) {
      if (k % group == 0) {
        const unsigned code = group == 32 ? 108 + random.below(20) : 1 + random.below(126);
        scales.push_back(static_cast<std::uint8_t>(code));
        factor = group == 32 ? std::ldexp(1.0, static_cast<int>(code) - 127) : value_of_e4m3(code);
      }
      const unsigned code = random.below(16);
      auto& byte = bytes[static_cast<std::size_t>((row * cols + k) / 2)];
      byte = static_cast<std::uint8_t>(byte | (k % 2 == 0 ? code : code << 4));
      made.values(row, k) = value_of_e2m1(code) * factor;
    }
  }
  codes.second.data = bytes_of(bytes);
  scale.second.data = bytes_of(scales);
  made.tensors = {std::move(codes), std::move(scale)};
  return made;
}

/// As gpt-oss has it: name_blocks and name_scales.
inline EncodedTensors mxfp4_blocks(const std::string& name, const std::vector<Index>& shape) {
  const Index rows = *(shape.end() - 2), groups = shape.back() / 32;
  return e2m1_groups(shape, 32,
                     {name + "_blocks", {"U8", ending_in(shape, {rows, groups, 16}), {}}},
                     {name + "_scales", {"U8", ending_in(shape, {rows, groups}), {}}});
}
/// As compressed-tensors has it: name_packed and name_scale, of a name that ends in ".weight".
inline EncodedTensors mxfp4_packed(const std::string& name, Index rows, Index cols) {
  return e2m1_groups({rows, cols}, 32, {name + "_packed", {"U8", {rows, cols / 2}, {}}},
                     {name + "_scale", {"U8", {rows, cols / 32}, {}}});
}
/// As DeepSeek-V4 has it: stem.weight and stem.scale.
inline EncodedTensors mxfp4_signed(const std::string& stem, Index rows, Index cols) {
  return e2m1_groups({rows, cols}, 32, {stem + ".weight", {"I8", {rows, cols / 2}, {}}},
                     {stem + ".scale", {"F8_E8M0", {rows, cols / 32}, {}}});
}
/// As ModelOpt has it, with a second scale that multiplies.
inline EncodedTensors nvfp4(const std::string& stem, Index rows, Index cols) {
  EncodedTensors made =
      e2m1_groups({rows, cols}, 16, {stem + ".weight", {"U8", {rows, cols / 2}, {}}},
                  {stem + ".weight_scale", {"F8_E4M3", {rows, cols / 16}, {}}});
  made.tensors[stem + ".weight_scale_2"] = tensor_of("F32", {}, std::vector<float>{0.3f});
  made.tensors[stem + ".input_scale"] = tensor_of("F32", {}, std::vector<float>{7});
  made.values *= static_cast<double>(0.3f);
  return made;
}
/// As compressed-tensors has it, with a second scale that divides.
inline EncodedTensors nvfp4_packed(const std::string& stem, Index rows, Index cols) {
  EncodedTensors made =
      e2m1_groups({rows, cols}, 16, {stem + ".weight_packed", {"U8", {rows, cols / 2}, {}}},
                  {stem + ".weight_scale", {"F8_E4M3", {rows, cols / 16}, {}}});
  made.tensors[stem + ".weight_global_scale"] = tensor_of("F32", {1}, std::vector<float>{448});
  made.tensors[stem + ".input_global_scale"] = tensor_of("F32", {1}, std::vector<float>{7});
  made.values /= 448.0;
  return made;
}

/// Sets a field of so many bits, from bit `begin` of words on.
inline void set_field(std::vector<std::uint32_t>& words, Index begin, Index bits, unsigned value) {
  for (Index bit = 0; bit < bits; ++bit) {
    words[static_cast<std::size_t>((begin + bit) / 32)] |= (value >> bit & 1u)
                                                           << ((begin + bit) % 32);
  }
}

/// stem.weight_packed and the others of compressed-tensors, scales in BF16, or in F16 with 10 bits.
struct PackedIntegers {
  Index bits = 4, group = 32;
  bool zero_points = false, half_scales = false, group_index = false;

  EncodedTensors operator()(const std::string& stem, Index rows, Index cols) const {
    RandomCodes random(static_cast<unsigned>(rows * bits + group));
    const Index groups = cols / group, words = (cols * bits + 31) / 32;
    const Index zero_words = (rows * bits + 31) / 32;
    const auto limit = 1u << bits;
    std::vector<std::uint32_t> packed, zeros(static_cast<std::size_t>(zero_words * groups));
    std::vector<std::uint16_t> scales;
    std::vector<std::int32_t> index(static_cast<std::size_t>(cols));
    for (Index k = 0; k < cols; ++k) {
      index[static_cast<std::size_t>(k)] =
          static_cast<std::int32_t>(group_index ? (k * 5 + 1) % groups : k / group);
    }
    EncodedTensors made{.tensors = {}, .values = Matrix<double>(rows, cols)};
    for (Index row = 0; row < rows; ++row) {
      std::vector<double> factor, zero;
      for (Index g = 0; g < groups; ++g) {
        const unsigned fraction = random.below(half_scales ? 1024 : 128),
                       exponent = random.below(8);
        scales.push_back(static_cast<std::uint16_t>(
            half_scales ? (11 + exponent) << 10 | fraction : (120 + exponent) << 7 | fraction));
        factor.push_back(half_scales ? std::ldexp(1024 + fraction, static_cast<int>(exponent) - 14)
                                     : std::ldexp(128 + fraction, static_cast<int>(exponent) - 14));
        const unsigned stored = zero_points ? random.below(limit) : limit / 2;
        zero.push_back(stored);
        std::vector<std::uint32_t> column(static_cast<std::size_t>(zero_words));
        set_field(column, row * bits, bits, stored);
        for (Index word = 0; word < zero_words; ++word) {
          zeros[static_cast<std::size_t>(word * groups + g)] |=
              column[static_cast<std::size_t>(word)];
        }
      }
      std::vector<std::uint32_t> line(static_cast<std::size_t>(words));
      for (Index k = 0; k < cols; ++k) {
        const unsigned code = random.below(limit);
        const auto g = static_cast<std::size_t>(index[static_cast<std::size_t>(k)]);
        set_field(line, k * bits, bits, code);
        made.values(row, k) = (code - zero[g]) * factor[g];
      }
      packed.insert(packed.end(), line.begin(), line.end());
    }
    made.tensors[stem + ".weight_packed"] = tensor_of("I32", {rows, words}, packed);
    made.tensors[stem + ".weight_scale"] =
        tensor_of(half_scales ? "F16" : "BF16", {rows, groups}, scales);
    made.tensors[stem + ".weight_shape"] =
        tensor_of("I64", {2}, std::vector<std::int64_t>{rows, cols});
    if (zero_points) {
      made.tensors[stem + ".weight_zero_point"] = tensor_of("I32", {zero_words, groups}, zeros);
    }
    if (group_index) {
      made.tensors[stem + ".weight_g_idx"] = tensor_of("I32", {cols}, index);
    }
    return made;
  }
};

}  // namespace moe::io::testing
