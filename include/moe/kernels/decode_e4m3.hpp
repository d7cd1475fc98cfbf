// SPDX-License-Identifier: Apache-2.0
// Panels of floats of 8 bits with scales, the same on every instruction set and in files of moe,
// and their codes to floats that a tile multiplies, exactly: denormals are numbers, and NaN stays
// NaN. As fast as a panel is read from memory, where the instruction set allows.
#pragma once

#include <algorithm>
#include <array>
#include <limits>

#include "bfloat16.hpp"
#include "eight_bit_floats.hpp"
#include "register_tile.hpp"

#if defined(EIGEN_VECTORIZE_AVX512) && defined(__AVX512VBMI__) && defined(__AVX512BF16__)
#define MOE_TABLES_OF_128_BYTES
#endif

namespace moe::inline MOE_INSTRUCTION_SET::kernels {

/// 128 k of the 64 columns of a panel. A line of 64 bytes has 4 k of 16 columns: the first two k of
/// each column, and then the others.
struct alignas(64) E4m3Block {
  static constexpr Index cols = 64, depth = 128;
  static constexpr Index line = 64, group = 16, step = 4;  ///< columns and k of a line

  float scale[cols];
  std::uint8_t code[depth * cols];

  static constexpr Index place(Index col, Index k) {
    return (k / step * (cols / group) + col / group) * line + k % step / 2 * (line / 2) +
           col % group * 2 + k % 2;
  }
};

/// Two steps of the tile of In for the 16 columns of a line.
template <class In>
struct E4m3Steps {
  using Packet = typename RegisterTile<In>::Packet;
  static constexpr Index step = RegisterTile<In>::step, packet_size = RegisterTile<In>::packet_size;
  static constexpr int packets = E4m3Block::group / packet_size;
  static constexpr Index of_line = E4m3Block::step / (2 * step);  ///< that a line has of these
  static constexpr Index bytes = E4m3Block::line / of_line;

  Packet packet[2][packets];
};

/// Makes E4m3Steps<In> of their codes, where the machine has instructions for it: so many times the
/// values as the unit says. saw_nan() if one was NaN, which may have become a number.
template <class In>
class E4m3Decoder {
 public:
  static constexpr float unit = 1.0f;
};

template <class In>
concept DecodesE4m3 = requires(E4m3Decoder<In> decode, const std::uint8_t* codes) {
  { decode(codes) } -> std::same_as<E4m3Steps<In>>;
};

#ifdef MOE_TABLES_OF_128_BYTES

/// The low or the high bytes of the bfloat16 of all codes without a sign.
constexpr std::array<std::uint8_t, 128> bytes_of_bfloat16(int shift) {
  std::array<std::uint8_t, 128> bytes{};
  for (unsigned code = 0; code < 128; ++code) {
    unsigned exponent = code >> 3, fraction = code & 7u;
    if (exponent == 0 && fraction != 0) {  // a multiple of 2^-9
      for (exponent = 1; fraction < 8; fraction *= 2) {
        --exponent;  // may wrap round, and comes back with the bias
      }
      fraction &= 7u;
    }
    const unsigned number = (exponent + 120u) << 7 | fraction << 4;
    const unsigned value = code == 0 ? 0u : code == 127 ? 0x7fc0u : number;
    bytes[code] = static_cast<std::uint8_t>(value >> shift);
  }
  return bytes;
}

template <>
class E4m3Decoder<bf16> {
 public:
  static constexpr float unit = 1.0f;
  static constexpr bool saw_nan() { return false; }

  E4m3Steps<bf16> operator()(const std::uint8_t* codes) const {
    constexpr __mmask8 every = 0xff;
    const __m512i code = _mm512_maskz_permutexvar_epi64(every, order_, _mm512_loadu_si512(codes));
    const __m512i low = _mm512_permutex2var_epi8(low_[0], code, low_[1]);
    const __m512i magnitude = _mm512_permutex2var_epi8(high_[0], code, high_[1]);
    const __m512i high = _mm512_or_si512(magnitude, _mm512_and_si512(code, sign_));
    return {{{_mm512_castsi512_ps(_mm512_unpacklo_epi8(low, high))},
             {_mm512_castsi512_ps(_mm512_unpackhi_epi8(low, high))}}};
  }

 private:
  alignas(64) static constexpr auto low_bytes = bytes_of_bfloat16(0), high_bytes =
                                                                          bytes_of_bfloat16(8);

  __m512i low_[2] = {_mm512_load_si512(low_bytes.data()), _mm512_load_si512(low_bytes.data() + 64)},
          high_[2] = {_mm512_load_si512(high_bytes.data()),
                      _mm512_load_si512(high_bytes.data() + 64)};
  // Bytes are paired in each quarter of a register: the one with the order that this gives.
  __m512i order_ = _mm512_set_epi64(7, 3, 6, 2, 5, 1, 4, 0), sign_ = _mm512_set1_epi8(-128);
};

#endif

#if defined(EIGEN_VECTORIZE_AVX2) && defined(__F16C__)

/// Reads codes as halves, which have an exponent with a bias of 15 for 7: that is the unit, and
/// sums in it lose digits where those of the values are below 2^-118.
template <>
class E4m3Decoder<float> {
 public:
  static constexpr float unit = 0x1p-8f;
  bool saw_nan() const {
    return _mm256_movemask_epi8(_mm256_cmpeq_epi8(largest_, _mm256_set1_epi8(-1))) != 0;
  }

  E4m3Steps<float> operator()(const std::uint8_t* codes) {
    const __m256i two = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(codes));
    largest_ = _mm256_max_epu8(largest_, _mm256_or_si256(two, _mm256_set1_epi8(-128)));
    const __m256i first = half_of(_mm256_slli_epi16(two, 8)), second = half_of(two);
#ifdef EIGEN_VECTORIZE_AVX512
    constexpr __mmask16 every = 0xffff;
    return {{ {_mm512_maskz_cvtph_ps(every, first)}, { _mm512_maskz_cvtph_ps(every, second) } }};
#else
    return {{{_mm256_cvtph_ps(_mm256_castsi256_si128(first)),
              _mm256_cvtph_ps(_mm256_extracti128_si256(first, 1))},
             {_mm256_cvtph_ps(_mm256_castsi256_si128(second)),
              _mm256_cvtph_ps(_mm256_extracti128_si256(second, 1))}}};
#endif
  }

 private:
  /// Of words whose high byte is a code.
  static __m256i half_of(__m256i word) {
    return _mm256_and_si256(_mm256_srai_epi16(word, 1),
                            _mm256_set1_epi16(static_cast<short>(0xbf80)));
  }

  __m256i largest_ = _mm256_setzero_si256();  // codes as if all had the sign: 255 is NaN
};

#endif

/// to (size, tile cols), as RegisterTile<In> reads it, = the columns from `first` on of so many k
/// of a panel, a multiple of 4; `first` is a multiple of the tile's.
template <class In>
void decode_e4m3_plainly(const E4m3Block* blocks, Index size, Index first, In* to) {
  constexpr Index cols = RegisterTile<In>::cols, step = RegisterTile<In>::step;
  constexpr Index part = (std::min)(cols, E4m3Block::group);  // of a line
  for (Index k = 0; k < size; k += 2) {
    for (Index col = 0; col < cols; col += part, to += part * step) {
      const std::uint8_t* from =
          blocks[k / E4m3Block::depth].code + E4m3Block::place(first + col, k % E4m3Block::depth);
      for (Index i = 0; i < part; ++i) {
        if constexpr (step == 1) {
          to[i] = convert<In>(e4m3{from[2 * i]});
          to[i + cols] = convert<In>(e4m3{from[2 * i + 1]});
        } else {
          to[2 * i] = convert<In>(e4m3{from[2 * i]});
          to[2 * i + 1] = convert<In>(e4m3{from[2 * i + 1]});
        }
      }
    }
    to += (2 / step - 1) * cols;
  }
}

/// mark(k, column) for each of so many k and of the columns [first, end) whose code is NaN.
template <class Mark>
void for_nans(const E4m3Block* blocks, Index size, Index first, Index end, Mark&& mark) {
  constexpr unsigned magnitude = 0x7f;
  for (Index k = 0; k < size; ++k) {
    for (Index col = first; col < end; ++col) {
      const Index place = E4m3Block::place(col, k % E4m3Block::depth);
      if ((blocks[k / E4m3Block::depth].code[place] & magnitude) == magnitude) {
        mark(k, col);
      }
    }
  }
}

/// As above, times the decoder's unit. Codes a page ahead are asked for.
template <class In>
void decode_e4m3(const E4m3Block* blocks, Index size, Index first, In* to) {
  if constexpr (DecodesE4m3<In>) {
    using Steps = E4m3Steps<In>;
    constexpr Index cols = RegisterTile<In>::cols, group = E4m3Block::group;
    static_assert(cols % group == 0);
    E4m3Decoder<In> decode;
    In* const begin = to;
    for (Index k = 0; k < size; k += E4m3Block::step, to += E4m3Block::step * cols) {
      const std::uint8_t* line =
          blocks[k / E4m3Block::depth].code + E4m3Block::place(first, k % E4m3Block::depth);
      for (Index col = 0; col < cols; col += group, line += E4m3Block::line) {
        prefetch(line + page_ahead);
        for (Index number = 0; number < Steps::of_line; ++number) {
          const Steps steps = decode(line + number * Steps::bytes);
          for (Index s = 0; s < 2; ++s) {
            for (Index p = 0; p < Steps::packets; ++p) {
              store_step(to + (2 * number + s * Steps::step) * cols +
                             (col + p * Steps::packet_size) * Steps::step,
                         steps.packet[s][p]);
            }
          }
        }
      }
    }
    if (decode.saw_nan()) {
      for_nans(blocks, size, first, first + cols, [&](Index k, Index col) {
        begin[(k / Steps::step * cols + col - first) * Steps::step + k % Steps::step] =
            std::numeric_limits<In>::quiet_NaN();
      });
    }
  } else {
    decode_e4m3_plainly(blocks, size, first, to);
  }
}

}  // namespace moe::inline MOE_INSTRUCTION_SET::kernels

#undef MOE_TABLES_OF_128_BYTES
