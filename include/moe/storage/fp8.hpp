// SPDX-License-Identifier: Apache-2.0
// Weights as floats of 8 bits (E4M3) with a scale in float for every 128 outputs by 128 k, as
// DeepSeek-V3 is published: 8 bits a weight. A block of a panel is decoded exactly, for the tile of
// bfloat16 where the machine multiplies that, else of float; scales meet the sums of 128 k.
#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

#include "../kernels/decode_e4m3.hpp"
#include "bfloat16.hpp"

namespace moe::inline MOE_INSTRUCTION_SET {

/// Names the storage.
struct fp8 {};

template <>
struct WideOf<fp8> {
  using type = float;
};

namespace kernels {

/// The nearest E4M3, ties to even, at most 448 in magnitude; NaN for what is not finite.
inline std::uint8_t nearest_e4m3(double value) {
  const unsigned sign = std::signbit(value) ? 0x80u : 0u;
  if (!std::isfinite(value)) {
    return static_cast<std::uint8_t>(sign | 0x7fu);
  }
  const float magnitude = detail::round_to_odd((std::min)(std::abs(value), 448.0));
  constexpr float shift = 12582912.0f;  // 1.5 * 2^23: a sum with it is rounded to an integer
  if (magnitude < 0x1p-6f) {            // a multiple of 2^-9; 8 of them are the least normal number
    const auto steps = std::bit_cast<std::uint32_t>(magnitude * 512.0f + shift);
    return static_cast<std::uint8_t>(sign | (steps - std::bit_cast<std::uint32_t>(shift)));
  }
  std::uint32_t bits = std::bit_cast<std::uint32_t>(magnitude);
  bits += 0x7ffffu + (bits >> 20 & 1u);
  return static_cast<std::uint8_t>(sign | ((bits >> 20) - (120u << 3)));
}

}  // namespace kernels

template <>
class PackedMatrix<fp8> : public PanelLayout<kernels::RegisterTile<Bfloat16Input, Bfloat16Input>> {
 public:
  using Input = Bfloat16Input;
  using Precision = float;
  using Weight = Input;
  using Tile = kernels::RegisterTile<Input, Weight>;
  static constexpr Index scaled_depth = 128;
  static constexpr Index buffer_size = scaled_depth * cols;

  PackedMatrix() = default;
  template <class T>
  PackedMatrix(std::initializer_list<const Matrix<T>*> weights)
      : PanelLayout(weights.size(), (*weights.begin())->rows(), (*weights.begin())->cols()),
        count_(static_cast<Index>(weights.size())),
        codes_(static_cast<std::size_t>(num_panels() * depth() * cols)),
        scales_(static_cast<std::size_t>(num_panels() * num_blocks() * count_)) {
    Index number = 0;
    for (const Matrix<T>* weight : weights) {
      for (Index out = 0; out < num_outputs(); out += scaled_depth) {
        for (Index k = 0; k < width(); k += scaled_depth) {
          encode(*weight, number, out, k);
        }
      }
      ++number;
    }
  }

  /// Weights as their codes and scales say.
  Matrix<float> unpack(Index number) const {
    Matrix<float> weight(num_outputs(), width());
    for (Index out = 0; out < num_outputs(); ++out) {
      for (Index k = 0; k < width(); ++k) {
        const kernels::e4m3 code{codes_[place(number, out, k)]};
        weight(out, k) = scales(out / share(), k)[number] * kernels::widen(code);
      }
    }
    return weight;
  }

  std::size_t bytes() const { return codes_.size() + scales_.size() * sizeof(float); }
  const Weight* panel(Index number, Index k, Index size, Weight* buffer) const {
    kernels::decode_e4m3(codes(number, k), size * cols, buffer);
    return buffer;
  }
  std::span<const std::byte> source(Index number, Index k, Index size) const {
    return std::as_bytes(std::span(codes(number, k), static_cast<std::size_t>(size * cols)));
  }
  /// Of the 128 k that k is in: one for each matrix.
  const float* scales(Index number, Index k) const {
    return scales_.data() + (number * num_blocks() + k / scaled_depth) * count_;
  }

 private:
  static_assert(scaled_depth % cols == 0, "the columns of a matrix in a panel share their scales");

  Index num_blocks() const { return (width() + scaled_depth - 1) / scaled_depth; }
  const std::uint8_t* codes(Index number, Index k) const {
    return codes_.data() + (number * depth() + k) * cols;
  }
  std::size_t place(Index number, Index out, Index k) const {
    constexpr Index step = Tile::step;
    const Index col = number * share() + out % share();
    return static_cast<std::size_t>((out / share() * depth() + k / step * step) * cols +
                                    col * step + k % step);
  }

  /// The outputs and k of a block from `out` and `k` on. The largest weight becomes 448.
  template <class T>
  void encode(const Matrix<T>& weight, Index number, Index out, Index k) {
    const Index outs = (std::min)(scaled_depth, num_outputs() - out);
    const Index size = (std::min)(scaled_depth, width() - k);
    const auto value = [&](Index row, Index col) {
      return static_cast<double>(kernels::convert<float>(weight(out + row, k + col)));
    };
    double most = 0.0;
    for (Index row = 0; row < outs; ++row) {
      for (Index col = 0; col < size; ++col) {
        const double magnitude = std::abs(value(row, col));
        most = std::isfinite(magnitude) ? (std::max)(most, magnitude) : most;
      }
    }
    const auto scale = static_cast<float>(most / 448.0);
    for (Index panel = out / share(); panel * share() < out + outs; ++panel) {
      scales_[static_cast<std::size_t>((panel * num_blocks() + k / scaled_depth) * count_ +
                                       number)] = scale;
    }
    for (Index row = 0; row < outs; ++row) {
      for (Index col = 0; col < size; ++col) {
        const double steps = value(row, col) / static_cast<double>(scale > 0.0f ? scale : 1.0f);
        codes_[place(number, out + row, k + col)] = kernels::nearest_e4m3(steps);
      }
    }
  }

  Index count_ = 1;
  std::vector<std::uint8_t, Eigen::aligned_allocator<std::uint8_t>> codes_;
  std::vector<float> scales_;
};

}  // namespace moe::inline MOE_INSTRUCTION_SET
