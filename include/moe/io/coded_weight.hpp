// SPDX-License-Identifier: Apache-2.0
// The codes and scales of a weight in a checkpoint -> CodedMatrix of a storage's format, where that
// holds them exactly: nothing is decoded, and nothing rounded.
#pragma once

#include <cmath>
#include <optional>
#include <vector>

#include "../storage/fp8.hpp"
#include "../storage/mxfp4.hpp"
#include "encoded_place.hpp"

namespace moe::inline MOE_INSTRUCTION_SET::io {

namespace detail {

/// Exactly as a scale of format F, or nothing. Scales of MXFP4 are powers of two already.
template <class F>
std::optional<typename F::Scale> scale_in(double value) {
  if constexpr (std::same_as<F, Mxfp4Format>) {
    return static_cast<std::uint8_t>(std::isnan(value) ? 255 : std::ilogb(value) + 127);
  } else {
    const auto scale = kernels::convert<typename F::Scale>(value);
    const bool exact =
        moe::detail::equals(kernels::convert<double>(scale), value) || std::isnan(value);
    return exact ? std::optional(scale) : std::nullopt;
  }
}

/// Whether codes of the weight are codes of format F, but for what is added to integers.
template <class F>
bool has_codes_of(const EncodedWeight& weight) {
  const Encoding& encoding = weight.encoding();
  if constexpr (std::same_as<F, Mxfp4Format>) {
    return encoding.kind == CodeKind::e2m1 && encoding.group == kernels::block_size &&
           encoding.second_scale.empty();
  } else if constexpr (std::same_as<F, Fp8Format>) {
    return weight.codes_type() == DType::F8_E4M3 && weight.shares_scales_by(Fp8Format::block_size);
  } else {
    return encoding.kind == CodeKind::integer && weight.bits() <= F::bits && weight.is_symmetric();
  }
}

/// What is added to codes of the weight to have those of format F.
template <class F>
unsigned code_above(const EncodedWeight& weight) {
  if constexpr (requires { F::table; } || std::same_as<F, Fp8Format>) {
    return 0;
  } else {
    return static_cast<unsigned>(F::bias - (1 << (weight.bits() - 1)));
  }
}

}  // namespace detail

/// The weight (rows, cols) at a place, or nothing where format F does not hold it as it is: MXFP4,
/// E4M3 with a scale for 128 k or more, and for scales in half symmetric integers of no more bits,
/// in groups of whole blocks of 32, with scales that a half has.
template <class F>
std::optional<CodedMatrix<F>> coded_weight(const EncodedPlace& from, Shape shape) {
  const EncodedWeight& weight = from.weight;
  const Place& place = from.place;
  if (!detail::has_codes_of<F>(weight) || place.col_step != 1 || shape.cols != weight.width()) {
    return std::nullopt;
  }
  CodedMatrix<F> coded(shape.rows, shape.cols);
  std::vector<unsigned> codes(static_cast<std::size_t>(shape.cols));
  const unsigned above = detail::code_above<F>(weight);
  for (Index row = 0; row < shape.rows; ++row) {
    const Index stored = (place.first + row * place.row_step) / weight.width();
    weight.read_codes(stored, codes.data());
    for (Index k = 0; k < shape.cols; ++k) {
      auto& block = coded.block(row, k / coded.block_size);
      if (k % coded.block_size == 0) {
        const auto scale = detail::scale_in<F>(weight.scale_at(stored, k));
        if (!scale) {
          return std::nullopt;
        }
        block.scale = *scale;
      }
      block.code[static_cast<std::size_t>(k % coded.block_size)] =
          static_cast<std::uint8_t>(codes[static_cast<std::size_t>(k)] + above);
    }
  }
  return coded;
}

/// Nothing: no weight here has minima.
template <kernels::HasMinima F>
std::optional<CodedMatrix<F>> coded_weight(const EncodedPlace& /*from*/, Shape /*shape*/) {
  return std::nullopt;
}

}  // namespace moe::inline MOE_INSTRUCTION_SET::io
