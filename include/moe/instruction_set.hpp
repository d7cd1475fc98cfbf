// SPDX-License-Identifier: Apache-2.0
// Names the instruction set that a translation unit is compiled for. All of moe lives in an inline
// namespace of that name, so that units compiled with different flags can be linked into one
// program: each has code of its own, and neither runs the other's instructions. Units of one name
// need the same flags.
//
// Eigen is not in that namespace: such units have to be compiled with the EIGEN_MAX_ALIGN_BYTES of
// the widest set (64 with AVX-512), on which its allocation depends, and pass no Eigen objects to
// each other; and the linker may keep the copy of an Eigen function for the widest set, so the
// program needs a CPU that has it.
#pragma once

// NaN marks what must not be used and -inf what is masked, sums keep their order, and exp() rounds
// by adding and subtracting a large number.
#if defined(__FAST_MATH__) || defined(__ASSOCIATIVE_MATH__) || defined(_M_FP_FAST) || \
    defined(__RECIPROCAL_MATH__) || defined(__NO_SIGNED_ZEROS__) ||                   \
    (defined(__FINITE_MATH_ONLY__) && __FINITE_MATH_ONLY__)
#error "moe needs IEEE arithmetic: compile without -ffast-math, -Ofast and their parts (/fp:fast)"
#endif

#if defined(EIGEN_DONT_VECTORIZE)
#define MOE_INSTRUCTION_SET scalar
#elif defined(__AVX512BF16__) && (defined(__AMX_BF16__) || defined(__AMXBF16__))
#define MOE_INSTRUCTION_SET avx512_amx
#elif defined(__AVX512BF16__) && defined(__AVX512VNNI__)
#define MOE_INSTRUCTION_SET avx512_bf16_vnni
#elif defined(__AVX512BF16__)
#define MOE_INSTRUCTION_SET avx512_bf16
#elif defined(__AVX512VNNI__)
#define MOE_INSTRUCTION_SET avx512_vnni
#elif defined(__AVX512F__)
#define MOE_INSTRUCTION_SET avx512
#elif defined(__AVX2__) && defined(__FMA__) && defined(__AVXVNNI__)
#define MOE_INSTRUCTION_SET avx2_fma_vnni
#elif defined(__AVX2__) && defined(__FMA__)
#define MOE_INSTRUCTION_SET avx2_fma
#elif defined(__AVX__)
#define MOE_INSTRUCTION_SET avx
#elif defined(__SSE4_1__)
#define MOE_INSTRUCTION_SET sse4
#elif defined(__SSE2__) || defined(_M_X64)
#define MOE_INSTRUCTION_SET sse2
#elif defined(__ARM_NEON) && defined(__ARM_FEATURE_DOTPROD)
#define MOE_INSTRUCTION_SET neon_dotprod
#elif defined(__ARM_NEON)
#define MOE_INSTRUCTION_SET neon
#else
#define MOE_INSTRUCTION_SET scalar
#endif
