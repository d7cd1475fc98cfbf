// SPDX-License-Identifier: Apache-2.0
// The parameters of an Expert.
#pragma once

#include <string_view>

#include "../config.hpp"
#include "../parameters.hpp"

namespace moe::inline MOE_INSTRUCTION_SET {

/// A Tensor for each tensor of an expert: a matrix, or its Shape. Weights may be of another type.
template <class Tensor, class Weight = Tensor>
struct ExpertTensors {
  Weight gate = {}, up = {}, down = {};                 ///< (F, D_in), (F, D_in), (D_out, F)
  Tensor gate_bias = {}, up_bias = {}, down_bias = {};  ///< (1, F), (1, F), (1, D_out)
  Tensor output_gate = {};                              ///< (1, D_in)

  template <class Visit, class... P>
  static void for_each(Visit&& visit, P&... p) {
    visit(std::string_view("gate"), p.gate...);
    visit(std::string_view("up"), p.up...);
    visit(std::string_view("down"), p.down...);
    visit(std::string_view("gate_bias"), p.gate_bias...);
    visit(std::string_view("up_bias"), p.up_bias...);
    visit(std::string_view("down_bias"), p.down_bias...);
    visit(std::string_view("output_gate"), p.output_gate...);
  }
};

/// Weights are (out, in), as in PyTorch; a tensor that the expert does not have is empty.
template <Real T>
using ExpertParams = ExpertTensors<Matrix<T>>;

/// What each tensor of an expert of these sizes has to be.
inline ExpertTensors<Shape> expert_shapes(const ExpertConfig& config, Index d_in, Index d_ff,
                                          Index d_out) {
  const Index gated = config.gated ? d_ff : 0;
  return {.gate = {gated, d_in},
          .up = {d_ff, d_in},
          .down = {d_out, d_ff},
          .gate_bias = {1, config.bias ? gated : 0},
          .up_bias = {1, config.bias ? d_ff : 0},
          .down_bias = {1, config.bias ? d_out : 0},
          .output_gate = {config.output_gate ? 1 : 0, d_in}};
}

}  // namespace moe::inline MOE_INSTRUCTION_SET
