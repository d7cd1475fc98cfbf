// SPDX-License-Identifier: Apache-2.0
// What the tiles for weights in integers share on every instruction set: their sizes, and how they
// fetch what comes next.
#pragma once

#include <cstring>

#include "coded_panel.hpp"
#include "register_tile.hpp"

// Accumulators stay in registers only where constants address them. A loop that is kept would have
// GCC make all products first, to add them up in another order, and spill.
#if defined(__GNUC__) && !defined(__clang__)
#define MOE_UNROLL_LOOP _Pragma("GCC unroll 8")
#define MOE_KEEP_LOOP _Pragma("GCC unroll 1")
#else
#define MOE_UNROLL_LOOP _Pragma("unroll")
#define MOE_KEEP_LOOP _Pragma("nounroll")
#endif

namespace moe::inline MOE_INSTRUCTION_SET {

template <>
struct WideOf<kernels::CodedInput> {
  using type = float;
};

namespace kernels {

#ifdef MOE_BYTE_DOTS_OF_64
inline constexpr int coded_rows = 6;
#else
inline constexpr int coded_rows = 4;
#endif

template <>
inline constexpr Index numbers_in<CodedInput> = block_size;

/// A step is a block of k. A panel is fetched by the last three or four tiles of the one before.
template <class F>
struct RegisterTile<CodedInput, CodedBlock<F>> {
  using Sum = float;
  static constexpr Index cols = CodedBlock<F>::cols, step = block_size;
  static constexpr int rows = coded_rows;
  static constexpr Index step_bytes =
      Index{sizeof(CodedBlock<F>)} / (CodedBlock<F>::depth / step);  ///< of a panel
  static constexpr Index lines = (step_bytes + 63) / 64;
  static constexpr Index lines_ahead = (lines / 3 + 1) / 2 * 2;

  static constexpr Index depth_of(Index bytes) {
    return bytes / Index{sizeof(CodedBlock<F>)} * CodedBlock<F>::depth;
  }
  static constexpr Index depth = depth_of(262144);
  static constexpr Index whole_steps(Index k) { return (k + step - 1) / step * step; }
};

/// Four codes of a row, to be met by four of each column.
inline std::int32_t four_codes(const std::int8_t* code) {
  std::int32_t four;
  std::memcpy(&four, code, sizeof four);
  return four;
}

/// Asks for what comes next at each block of a tile. One or two rows use up bytes so fast that they
/// would wait for the way from the second cache: the first asks for the panel's own lines, about a
/// block ahead.
template <class F, int Rows>
class BlockFetch {
  using Tile = RegisterTile<CodedInput, CodedBlock<F>>;

 public:
  explicit BlockFetch(const Ahead& ahead) : fetch_(ahead) {}

  void operator()(const CodedBlock<F>* panel, Index number) {
    fetch_();
    if constexpr (Rows <= 2) {
      const char* own = reinterpret_cast<const char*>(panel) + number * Tile::step_bytes;
      MOE_UNROLL_LOOP for (Index i = 0; i < Tile::lines; ++i) { prefetch<1>(own + 1024 + 64 * i); }
    }
  }

 private:
  Fetch fetch_;
};

}  // namespace kernels
}  // namespace moe::inline MOE_INSTRUCTION_SET
