// SPDX-License-Identifier: Apache-2.0
// How published checkpoints keep a weight matrix in several tensors, as data: codes of few bits and
// their scales, by what their names end with, their types and their groups. A convention is a row.
#pragma once

#include <string>
#include <string_view>

#include "model_config.hpp"
#include "tensor_files.hpp"

namespace moe::inline MOE_INSTRUCTION_SET::io {

/// What a code is: a float of 8 bits, which one its tensor says; one of 4, the first of two in a
/// byte in its low half; an integer in a stream of bits, from the least significant one of words of
/// 32, with 2^(bits - 1) added to it.
enum class CodeKind : std::uint8_t { float8, e2m1, integer };

/// How many scales a matrix (N, K) has: for blocks of group_rows x group; those, or one for a row,
/// or one in all; for any groups that divide K.
enum class ScalesOf : std::uint8_t { blocks, blocks_rows_or_all, any_groups };

/// Of a weight "a.weight" or "b", which is (.., N, K): a tensor of codes, one of scales, and what
/// else there is. A name that begins with a point stands in the place of ".weight", any other
/// behind it. Types are as files spell them, any of several with spaces between them.
struct Encoding {
  std::string_view name;  ///< for messages
  CodeKind kind = CodeKind::float8;
  std::string_view codes = {};  ///< name; empty: the weight's own
  std::string_view codes_types = "F8_E4M3 F8_E5M2";
  bool in_blocks = false;      ///< their shape is (.., N, K / group, bytes of a group)
  bool outputs_first = false;  ///< whatever order the family's floats have
  std::string_view scale = {}, scale_types = {};  ///< U8 is read as F8_E8M0
  ScalesOf scales_of = ScalesOf::blocks;
  Index group_rows = 1, group = 1;
  std::string_view second_scale = {};  ///< F32, one of a matrix
  bool divides = false;                ///< by the second scale, or else multiplies
  std::string_view zero_point = {};    ///< may be there: packed along N, (bits * N / 32, groups)
  std::string_view group_index = {};   ///< may be there: the group of each k
  std::string_view shape = {};         ///< may be there: N and K
};

namespace detail {

// clang-format off
inline constexpr Encoding encodings[] = {
    // DeepSeek-V3, Qwen3-FP8, MiniMax: times the scale, whatever its name says.
    {.name = "FP8 blocks", .scale = "_scale_inv", .scale_types = "F32 BF16 F16 F8_E8M0",
     .group_rows = 128, .group = 128},
    // DeepSeek-V4.
    {.name = "FP8 blocks", .scale = ".scale", .scale_types = "F8_E8M0 F32", .group_rows = 128,
     .group = 128},
    // compressed-tensors and ModelOpt.
    {.name = "FP8", .scale = "_scale", .scale_types = "F32 BF16 F16",
     .scales_of = ScalesOf::blocks_rows_or_all, .group_rows = 128, .group = 128},
    // gpt-oss.
    {.name = "MXFP4", .kind = CodeKind::e2m1, .codes = "_blocks", .codes_types = "U8",
     .in_blocks = true, .outputs_first = true, .scale = "_scales", .scale_types = "U8 F8_E8M0",
     .group = 32},
    // compressed-tensors: Kimi-K3.
    {.name = "MXFP4", .kind = CodeKind::e2m1, .codes = "_packed", .codes_types = "U8",
     .scale = "_scale", .scale_types = "U8 F8_E8M0", .group = 32},
    // DeepSeek-V4.
    {.name = "MXFP4", .kind = CodeKind::e2m1, .codes_types = "I8", .scale = ".scale",
     .scale_types = "F8_E8M0 U8", .group = 32},
    // compressed-tensors, and ModelOpt.
    {.name = "NVFP4", .kind = CodeKind::e2m1, .codes = "_packed", .codes_types = "U8",
     .scale = "_scale", .scale_types = "F8_E4M3", .group = 16, .second_scale = "_global_scale",
     .divides = true},
    {.name = "NVFP4", .kind = CodeKind::e2m1, .codes_types = "U8", .scale = "_scale",
     .scale_types = "F8_E4M3", .group = 16, .second_scale = "_scale_2"},
    // compressed-tensors: Kimi-K2-Thinking.
    {.name = "packed integers", .kind = CodeKind::integer, .codes = "_packed",
     .codes_types = "I32", .scale = "_scale", .scale_types = "BF16 F16 F32",
     .scales_of = ScalesOf::any_groups, .zero_point = "_zero_point", .group_index = "_g_idx",
     .shape = "_shape"},
};
// clang-format on

/// One number of a matrix each, that only kernels which quantise activations read.
inline constexpr std::string_view scales_of_activations =
    ".input_scale _input_scale .input_global_scale";

/// A tensor that belongs to the weight.
inline std::string partner_of(std::string_view weight, std::string_view end) {
  constexpr std::string_view own = ".weight";
  if (end.starts_with('.') && weight.ends_with(own)) {
    weight.remove_suffix(own.size());
  }
  return joined(weight, end);
}

inline bool is_one_of(DType dtype, std::string_view types) {
  for (const std::string_view type : words(types)) {
    if (type == name(dtype)) {
      return true;
    }
  }
  return false;
}

}  // namespace detail

/// Whether there is a tensor of this name, or codes of such a weight.
inline bool contains_weight(const TensorFiles& files, const std::string& weight) {
  bool found = files.contains(weight);
  for (const Encoding& encoding : detail::encodings) {
    found = found || files.contains(detail::partner_of(weight, encoding.codes));
  }
  return found;
}

/// The encoding of a weight by its codes and their scale, null where there are no codes of a type
/// that one has. Throws FormatError where they have no scale, or one of another type.
inline const Encoding* encoding_of(TensorFiles& files, const std::string& weight) {
  std::string codes, types, scale, scales;
  for (const Encoding& encoding : detail::encodings) {
    const std::string its_codes = detail::partner_of(weight, encoding.codes);
    if (!files.contains(its_codes) ||
        !detail::is_one_of(files.at(its_codes).view.dtype, encoding.codes_types)) {
      continue;
    }
    codes = its_codes;
    const std::string its_scale = detail::partner_of(weight, encoding.scale);
    if (files.contains(its_scale)) {
      if (detail::is_one_of(files.at(its_scale).view.dtype, encoding.scale_types)) {
        return &encoding;
      }
      scale = its_scale;
      types += detail::joined(types.empty() ? "" : " or ", encoding.scale_types);
    }
    scales += detail::joined(scales.empty() ? "" : " or ", printable(its_scale));
  }
  if (codes.empty()) {
    return nullptr;
  }
  const FileTensor found = files.at(scale.empty() ? codes : scale);
  throw FormatError(
      found.file, found.view.name, found.view.file_offset,
      scale.empty()
          ? detail::joined("dtype ", name(found.view.dtype),
                           ", expected F64, F32, F16 or BF16, or a scale beside it: ", scales)
          : detail::joined("dtype ", name(found.view.dtype), ", expected ", types, " beside ",
                           printable(codes)));
}

}  // namespace moe::inline MOE_INSTRUCTION_SET::io
