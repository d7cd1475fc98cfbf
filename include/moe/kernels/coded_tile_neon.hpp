// SPDX-License-Identifier: Apache-2.0
// The register tile for weights in integers, by the dot product of 16 bytes that NEON has (Armv8.2,
// FEAT_DotProd). Both bytes have a sign: one of 8 bits gets it where it is read.
#pragma once

#include "coded_steps.hpp"

#ifdef MOE_BYTE_DOTS_WITH_SIGN

namespace moe::inline MOE_INSTRUCTION_SET::kernels {

inline float32x4_t load_scales(const Eigen::half* from) {
  const uint16x4_t bits = vld1_u16(reinterpret_cast<const std::uint16_t*>(from));
  return vcvt_f32_f16(vreinterpret_f16_u16(bits));
}
/// 2^(e - 127): 0 is 2^-127, and 255 NaN.
inline float32x4_t load_scales(const std::uint8_t* from) {
  const std::uint32_t four[] = {from[0], from[1], from[2], from[3]};
  const uint32x4_t e = vld1q_u32(four);
  const uint32x4_t special = vcgeq_u32(vsubq_u32(e, vdupq_n_u32(1)), vdupq_n_u32(254));
  return vreinterpretq_f32_u32(
      vorrq_u32(vshlq_n_u32(e, 23), vandq_u32(special, vdupq_n_u32(0x400000))));
}

/// Exactly.
inline float32x4_t load_scales(Multiples from) {
  const std::uint8_t* m = from.multiple;
  const std::uint32_t four[] = {m[0], m[1], m[2], m[3]};
  return vmulq_f32(load_scales(from.of), vcvtq_f32_u32(vld1q_u32(four)));
}

/// The numbers of 4 k of 4 columns; of 4 bits, from the low or the high half of the bytes.
template <class F>
int8x16_t numbers_of(const std::uint8_t* from, int half) {
  const uint8x16_t bytes = vld1q_u8(from);
  if constexpr (F::bits == 8) {
    static_assert(F::bias == 128);
    return vreinterpretq_s8_u8(veorq_u8(bytes, vdupq_n_u8(0x80)));
  } else {
    const uint8x16_t codes = half == 0 ? vandq_u8(bytes, vdupq_n_u8(15)) : vshrq_n_u8(bytes, 4);
    if constexpr (HasTable<F>) {
      return vreinterpretq_s8_u8(vqtbl1q_u8(vld1q_u8(F::table), codes));
    } else {
      return vreinterpretq_s8_u8(codes);
    }
  }
}

/// One block after the other in the order of memory, all of its columns; sums are in the caches.
template <class F, int Rows>
EIGEN_DONT_INLINE void multiply_coded(const CodedInput* const* rows, const CodedBlock<F>* panel,
                                      Index blocks, Sums<CodedInput> sums, Ahead ahead) {
  using Block = CodedBlock<F>;
  constexpr int quarters = 4;  // of a group, 4 columns each
  BlockFetch<F, Rows> fetch(ahead);
  for (Index b = 0; b < blocks; ++b) {
    const bool add = b > 0 || sums.update == Update::add;
    fetch(panel, b);
    const auto& block = block_at(panel, b);
    for (Index col = 0; col < Block::cols; col += Block::group) {
      int32x4_t dot[Rows][quarters];
      MOE_UNROLL_LOOP for (int r = 0; r < Rows; ++r) {
        MOE_UNROLL_LOOP for (int q = 0; q < quarters; ++q) {
          dot[r][q] = vdupq_n_s32(first_sum<F>(rows[r][b]));
        }
      }
      const std::uint8_t* lines = block.code + col / Block::group * Block::lines * Block::line;
      MOE_UNROLL_LOOP for (int i = 0; i < 8; ++i) {  // 4 k each
        int8x16_t w[quarters];
        MOE_UNROLL_LOOP for (int q = 0; q < quarters; ++q) {
          w[q] = numbers_of<F>(lines + i % Block::lines * Block::line + 16 * q, i / 4);
        }
        MOE_UNROLL_LOOP for (int r = 0; r < Rows; ++r) {
          const int8x16_t x =
              vreinterpretq_s8_s32(vdupq_n_s32(four_codes(rows[r][b].code + 4 * i)));
          MOE_UNROLL_LOOP for (int q = 0; q < quarters; ++q) {
            dot[r][q] = vdotq_s32(dot[r][q], w[q], x);
          }
        }
      }
      MOE_UNROLL_LOOP for (int q = 0; q < quarters; ++q) {
        const float32x4_t scale = load_scales(block.scale + col + 4 * q);
        float32x4_t minimum = vdupq_n_f32(0.0f);
        if constexpr (HasMinima<F>) {
          minimum = load_scales(block.minimum + col + 4 * q);
        }
        MOE_UNROLL_LOOP for (int r = 0; r < Rows; ++r) {
          float* to = sums.data + r * sums.stride + col + 4 * q;
          const float32x4_t before = add ? vld1q_f32(to) : vdupq_n_f32(0.0f);
          const float32x4_t both = vmulq_n_f32(scale, rows[r][b].scale * F::unit);
          float32x4_t sum = vfmaq_f32(before, vcvtq_f32_s32(dot[r][q]), both);
          if constexpr (HasMinima<F>) {
            sum = vfmsq_f32(sum, minimum, vdupq_n_f32(rows[r][b].sum()));
          }
          vst1q_f32(to, sum);
        }
      }
    }
  }
}

}  // namespace moe::inline MOE_INSTRUCTION_SET::kernels
#endif
