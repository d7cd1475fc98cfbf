// SPDX-License-Identifier: Apache-2.0
// GGUF's blocks of elements -> numbers, below read_place(): exact in double, rounded once to any
// other float. Of the other types of blocks dtype.hpp has only name and size.
#pragma once

#include <array>
#include <bit>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>

#include "../kernels/convert.hpp"
#include "dtype.hpp"

namespace moe::inline MOE_INSTRUCTION_SET::io {

namespace detail {

inline constexpr std::size_t most_block_elements = 256;

/// A block's bytes, as numbers.
struct BlockBytes {
  const std::byte* data;

  int at(int i) const { return std::to_integer<int>(data[i]); }
  int signed_at(int i) const { return static_cast<std::int8_t>(at(i)); }
  template <class T>
  T half(int i) const {
    Eigen::half value;
    std::memcpy(static_cast<void*>(&value), data + i, sizeof value);
    return kernels::convert<T>(value);
  }
  BlockBytes from(int i) const { return {data + i}; }
};

// decode<T>(bytes, out): all products of a scale and an integer are exact in float, too, but those
// of Q6_K, which round as they are; so a difference of two rounds once.

/// Scale and 32 integers of 8 bits.
struct Q8_0Block {
  template <class T>
  static void decode(BlockBytes bytes, T* out) {
    const T scale = bytes.half<T>(0);
    for (int i = 0; i < 32; ++i) {
      out[i] = scale * static_cast<T>(bytes.signed_at(2 + i));
    }
  }
};

/// Scale and 16 bytes: the low halves are the first 16 elements, the high halves the others.
struct Q4_0Block {
  template <class T>
  static void decode(BlockBytes bytes, T* out) {
    const T scale = bytes.half<T>(0);
    for (int i = 0; i < 16; ++i) {
      const int byte = bytes.at(2 + i);
      out[i] = scale * static_cast<T>((byte & 15) - 8);
      out[i + 16] = scale * static_cast<T>((byte >> 4) - 8);
    }
  }
};

/// The same with a fifth bit of each element, 32 of them behind the scale.
struct Q5_0Block {
  template <class T>
  static void decode(BlockBytes bytes, T* out) {
    const T scale = bytes.half<T>(0);
    for (int i = 0; i < 16; ++i) {
      const int byte = bytes.at(6 + i), bit = i % 8;
      const int low = (bytes.at(2 + i / 8) >> bit & 1) << 4;
      const int high = (bytes.at(4 + i / 8) >> bit & 1) << 4;
      out[i] = scale * static_cast<T>(((byte & 15) | low) - 16);
      out[i + 16] = scale * static_cast<T>(((byte >> 4) | high) - 16);
    }
  }
};

/// An exponent and 16 bytes as those of Q4_0. Twice the values of a code are integers. An exponent
/// of 255 is NaN, as its standard has it.
struct Mxfp4Block {
  static constexpr std::array<std::int8_t, 16> twice{0, 1,  2,  3,  4,  6,  8,  12,
                                                     0, -1, -2, -3, -4, -6, -8, -12};
  template <class T>
  static void decode(BlockBytes bytes, T* out) {
    const int exponent = bytes.at(0);
    const auto bits = static_cast<std::uint64_t>(exponent - 128 + 1023) << 52;
    const double scale =
        exponent == 255 ? std::numeric_limits<double>::quiet_NaN() : std::bit_cast<double>(bits);
    for (int i = 0; i < 16; ++i) {
      const int byte = bytes.at(1 + i);
      out[i] = static_cast<T>(scale * twice[static_cast<std::size_t>(byte & 15)]);
      out[i + 16] = static_cast<T>(scale * twice[static_cast<std::size_t>(byte >> 4)]);
    }
  }
};

/// What Q4_K and Q5_K have for each of 8 groups of 32: 6 bits of a scale and 6 of a minimum, which
/// the scales of both, at the beginning of a block, multiply. Of the last four groups the upper two
/// bits are at the top of the first four's.
struct GroupMultiples {
  int scale, minimum;

  GroupMultiples(BlockBytes bytes, int group) {
    const BlockBytes of = bytes.from(4);
    const bool first = group < 4;
    const int numbers = first ? (of.at(group) & 63) : (of.at(group + 4) & 15);
    const int minima = first ? (of.at(group + 4) & 63) : of.at(group + 4) >> 4;
    const int numbers_top = first ? 0 : of.at(group - 4) >> 6 << 4;
    const int minima_top = first ? 0 : of.at(group) >> 6 << 4;
    scale = numbers | numbers_top;
    minimum = minima | minima_top;
  }
};

template <class T>
struct GroupScale {
  T scale, minimum;

  GroupScale(BlockBytes bytes, int group) {
    const GroupMultiples of(bytes, group);
    scale = bytes.half<T>(0) * static_cast<T>(of.scale);
    minimum = bytes.half<T>(2) * static_cast<T>(of.minimum);
  }
};

/// Element i of a group is in the low half of byte i of 32, those of the next group in the high.
struct Q4_KBlock {
  static int code(BlockBytes bytes, int group, int i) {
    return bytes.at(16 + group / 2 * 32 + i) >> group % 2 * 4 & 15;
  }
  template <class T>
  static void decode(BlockBytes bytes, T* out) {
    for (int group = 0; group < 8; ++group) {
      const GroupScale<T> of(bytes, group);
      for (int i = 0; i < 32; ++i) {
        out[group * 32 + i] = of.scale * static_cast<T>(code(bytes, group, i)) - of.minimum;
      }
    }
  }
};

/// The same with a fifth bit of each element: bit `group` of byte i of the 32 before the codes.
struct Q5_KBlock {
  template <class T>
  static void decode(BlockBytes bytes, T* out) {
    for (int group = 0; group < 8; ++group) {
      const GroupScale<T> of(bytes, group);
      const BlockBytes codes = bytes.from(48 + group / 2 * 32), fifth = bytes.from(16);
      const int shift = group % 2 * 4;
      for (int i = 0; i < 32; ++i) {
        const int code = (codes.at(i) >> shift & 15) | (fifth.at(i) >> group & 1) << 4;
        out[group * 32 + i] = of.scale * static_cast<T>(code) - of.minimum;
      }
    }
  }
};

/// Twice 128 elements: four bits of each in 64 bytes, two more in 32, and a scale of 8 bits for
/// every 16. What multiplies these is the block's last number.
struct Q6_KBlock {
  template <class T>
  static void decode(BlockBytes bytes, T* out) {
    const T scale = bytes.half<T>(208);
    for (int i = 0; i < 256; ++i) {
      const int half = i / 128, quarter = i % 128 / 32, l = i % 32;
      const int low = bytes.at(half * 64 + quarter % 2 * 32 + l) >> quarter / 2 * 4 & 15;
      const int high = bytes.at(128 + half * 32 + l) >> quarter * 2 & 3;
      out[i] = scale * static_cast<T>(bytes.signed_at(192 + i / 16)) *
               static_cast<T>((low | (high << 4)) - 32);
    }
  }
};

}  // namespace detail

/// Calls visit(a block's type) for those that can be decoded; false for all other dtypes.
template <class Visit>
bool visit_block(DType dtype, Visit&& visit) {
  switch (dtype) {
    case DType::Q8_0:
      return visit(detail::Q8_0Block{}), true;
    case DType::Q4_0:
      return visit(detail::Q4_0Block{}), true;
    case DType::Q5_0:
      return visit(detail::Q5_0Block{}), true;
    case DType::MXFP4:
      return visit(detail::Mxfp4Block{}), true;
    case DType::Q4_K:
      return visit(detail::Q4_KBlock{}), true;
    case DType::Q5_K:
      return visit(detail::Q5_KBlock{}), true;
    case DType::Q6_K:
      return visit(detail::Q6_KBlock{}), true;
    default:
      return false;
  }
}

/// Whether decode_blocks() can.
inline bool is_decodable(DType dtype) {
  return visit_block(dtype, [](auto) {});
}

/// The elements of so many blocks, which lie one after the other. Throws nothing; false, and
/// nothing is written, for a dtype that is none of visit_block()'s.
template <class T>
bool decode_blocks(DType dtype, const std::byte* blocks, std::size_t count, T* out) {
  return visit_block(dtype, [&]<class Block>(Block) {
    const auto [elements, bytes] = block_size(dtype);
    for (; count > 0; --count, blocks += bytes, out += elements) {
      if constexpr (std::same_as<T, float> || std::same_as<T, double>) {
        Block::decode({blocks}, out);
      } else {
        double exact[detail::most_block_elements];
        Block::decode({blocks}, exact);
        for (unsigned i = 0; i < elements; ++i) {
          out[i] = kernels::convert<T>(exact[i]);
        }
      }
    }
  });
}

}  // namespace moe::inline MOE_INSTRUCTION_SET::io
