// SPDX-License-Identifier: Apache-2.0
// Weights stored as bfloat16, rounded to nearest even; NaN stays NaN. Where the machine multiplies
// bfloat16, the tile reads them, and rows of bfloat16, as they lie. Elsewhere a block of a panel is
// decoded to float for the rows of a part, which are floats that have been rounded to bfloat16.
#pragma once

#include <type_traits>

#include "../kernels/bfloat16.hpp"
#include "panels.hpp"

namespace moe::inline MOE_INSTRUCTION_SET {

using Bfloat16Input = std::conditional_t<kernels::multiplies_bfloat16, bf16, float>;

template <std::same_as<bf16> S>
class PackedMatrix<S> : public StoredPanels<kernels::RegisterTile<Bfloat16Input, S>, S> {
  using Base = StoredPanels<kernels::RegisterTile<Bfloat16Input, S>, S>;

 public:
  using Input = Bfloat16Input;
  using Precision = std::conditional_t<kernels::multiplies_bfloat16, float, S>;
  using Weight = Input;
  using Tile = kernels::RegisterTile<Input, Weight>;
  static constexpr Index buffer_size = kernels::multiplies_bfloat16 ? 0 : Tile::depth * Tile::cols;
  /// Fewer rows meet the weights as they lie, which are then widened in registers, for each tile.
  /// With 32 registers this costs so little that decoding gains nothing before a part is full.
  static constexpr Index rows_to_decode = kernels::multiplies_bfloat16 ? 0
                                          : Tile::packets == 4         ? 256
                                                                       : 16;

  using Base::Base;

  const Weight* panel(Index number, Index k, Index size, Weight* buffer) const {
    const S* pairs = this->stored(number, k);
    if constexpr (kernels::multiplies_bfloat16) {
      return pairs;
    } else {
      constexpr Index row = Tile::cols, lanes = Tile::packet_size;
      for (Index step = 0; step < size * row; step += 2 * row) {
        for (Index col = 0; col < row; col += lanes) {
          const auto packet = kernels::load_step<typename Tile::Packet>(pairs + step + 2 * col);
          Eigen::internal::pstoreu(buffer + step + col, kernels::half_of_pairs<0>(packet));
          Eigen::internal::pstoreu(buffer + step + row + col, kernels::half_of_pairs<1>(packet));
        }
      }
      return buffer;
    }
  }
};

}  // namespace moe::inline MOE_INSTRUCTION_SET
