// SPDX-License-Identifier: Apache-2.0
// Weights as integers of 4 bits, of which every 32 have a scale and a minimum of 6 bits each, and
// every 256 two halves that these are multiples of: 4.625 bits a weight. What GGUF calls Q4_K is
// exactly this.
#pragma once

#include "q8.hpp"

namespace moe::inline MOE_INSTRUCTION_SET {

/// Names the storage. Its minima meet sums of 32 numbers of a row: one above a 32nd of the largest
/// float may make them Inf, and y NaN.
struct q4_k {};

template <>
struct WideOf<q4_k> {
  using type = float;
};

/// weight = scale * code - minimum.
struct Q4KFormat {
  using Scale = kernels::BlockScales;
  static constexpr std::string_view name = "q4_k";
  static constexpr int bits = 4;
  static constexpr std::int32_t bias = 0;
  static constexpr float unit = 1.0f;
  static constexpr unsigned most_multiple = 63;
  static constexpr Index block_size = 256;

  static constexpr std::int32_t number(unsigned code) { return static_cast<std::int32_t>(code); }
  static float scale_of(float scale) { return scale; }

  /// Each 32 weights have the scale and the minimum that fit them best, rounded to multiples of
  /// what the largest of them want, and then the codes nearest to the weights. All 256 are NaN
  /// where one is not finite.
  static Scale encode(const float* values, unsigned* codes) {
    constexpr Index size = kernels::block_size;
    std::fill_n(codes, block_size, 0u);
    Scale stored{};
    Line line[block_size / size];
    Line most{};
    for (Index i = 0; i < block_size / size; ++i) {
      if (!kernels::are_finite(values + i * size)) {
        stored.scale = std::numeric_limits<Eigen::half>::quiet_NaN();
        return stored;
      }
      line[i] = best_line(values + i * size);
      most.scale = (std::max)(most.scale, line[i].scale);
      most.minimum = (std::max)(most.minimum, line[i].minimum);
    }
    // Rounded up, so that none needs a larger multiple.
    stored.scale = kernels::half_not_below(most.scale / float{most_multiple});
    stored.minimum = kernels::half_not_below(most.minimum / float{most_multiple});
    for (std::size_t i = 0; i < stored.scales.size(); ++i) {
      stored.scales[i] = nearest_multiple(line[i].scale, stored.scale);
      stored.minima[i] = nearest_multiple(line[i].minimum, stored.minimum);
      const Line rounded{kernels::widen(stored.scale) * static_cast<float>(stored.scales[i]),
                         kernels::widen(stored.minimum) * static_cast<float>(stored.minima[i])};
      const Block of_block = rounded.codes_of(values + i * size);
      std::transform(of_block.begin(), of_block.end(), codes + i * size,
                     [](double code) { return static_cast<unsigned>(code); });
    }
    return stored;
  }

 private:
  using Block = kernels::Block;

  static constexpr Block ones = [] {
    Block block{};
    block.fill(1.0);
    return block;
  }();

  /// What codes stand for.
  struct Line {
    float scale = 0.0f, minimum = 0.0f;

    /// The nearest ones of 32 values.
    Block codes_of(const float* values) const {
      if (!(scale > 0.0f) || !std::isfinite(minimum)) {
        return Block{};
      }
      return kernels::nearest_steps(values, minimum, scale, 0.0f, 15.0f);
    }
    /// Of 32 values with these codes, from differences that are rounded to float.
    double error(const Block& values, const Block& codes) const {
      Block off;
      for (std::size_t k = 0; k < off.size(); ++k) {
        const double exact = static_cast<double>(scale) * codes[k];
        const auto rounded = static_cast<float>(exact - static_cast<double>(minimum) - values[k]);
        off[k] = static_cast<double>(rounded);
      }
      return kernels::exact_dot(off, off);
    }
    /// By least squares with these codes of 32 values, without a minimum below 0. All products are
    /// exact.
    Line refitted(const Block& values, const Block& codes) const {
      const double sum = kernels::exact_dot(ones, codes),
                   squares = kernels::exact_dot(codes, codes);
      const double det = double{kernels::block_size} * squares - sum * sum;
      if (!(det > 0.0)) {  // they are all the same
        return *this;
      }
      const auto rounded = [](double value) {
        return static_cast<double>(static_cast<float>(value));
      };
      const double total = rounded(kernels::exact_dot(ones, values));
      const double product = rounded(kernels::exact_dot(codes, values));
      const double above = sum * product - squares * total;
      if (above < 0.0) {
        return {static_cast<float>(product / squares), 0.0f};
      }
      const double rise = double{kernels::block_size} * product - sum * total;
      return {static_cast<float>(rise / det), static_cast<float>(above / det)};
    }
  };

  /// Of several that begin at the least of 32 values, or at 0 above it, each refitted some times.
  static Line best_line(const float* values) {
    const auto [least, most] = std::minmax_element(values, values + kernels::block_size);
    const float minimum = (std::max)(-*least, 0.0f), range = *most + minimum;
    Line best{range / 15.0f, minimum};
    if (!(best.scale > 0.0f) || !std::isfinite(range)) {
      return best;
    }
    const Block weights = kernels::block_of(values);
    double least_error = best.error(weights, best.codes_of(values));
    for (const float steps : {14.0f, 15.0f, 16.0f, 17.0f, 18.0f}) {
      Line line{range / steps, minimum};
      Block codes = line.codes_of(values);
      for (int fit = 0; fit < 3 && line.scale > 0.0f; ++fit) {
        line = line.refitted(weights, codes);
        codes = line.codes_of(values);
        if (const double error = line.error(weights, codes); error < least_error) {
          least_error = error;
          best = line;
        }
      }
    }
    return best;
  }
  static std::uint8_t nearest_multiple(float value, Eigen::half of) {
    const float step = kernels::widen(of);
    const bool has_multiples = step > 0.0f && std::isfinite(step);
    return has_multiples ? static_cast<std::uint8_t>(std::lround(value / step)) : std::uint8_t{0};
  }
};

template <>
class PackedMatrix<q4_k> : public CodedPanels<Q4KFormat> {
 public:
  using CodedPanels::CodedPanels;
};

}  // namespace moe::inline MOE_INSTRUCTION_SET
