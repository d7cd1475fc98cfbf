// SPDX-License-Identifier: Apache-2.0
// How the matrices of a feed-forward lie in files, as data: a handful of layouts under all the
// families' names. A TensorRule and a shape make a Place: a tensor, and where in it our matrix is
// as first element and two steps, which loading, saving and comparing all go by.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "../parameters.hpp"

namespace moe::inline MOE_INSTRUCTION_SET::io {

/// How a tensor differs from a matrix (out, in) of its own.
struct Order {
  bool transposed = false;   ///< (in, out)
  bool interleaved = false;  ///< outputs of several matrices take turns, or else follow each other
  bool experts_in_out = false;  ///< no dimension of experts: they follow each other in the first
};

/// A matrix (out, in) or vector (out) is a tensor of this name, or the part-th of so many in it.
struct TensorRule {
  std::string_view name = {};
  Order order = {};
  Index part = 0, parts = 1;
};

constexpr TensorRule gate_of(std::string_view name, Order order = {}) {
  return {name, order, 0, 2};
}
constexpr TensorRule up_of(std::string_view name, Order order = {}) { return {name, order, 1, 2}; }

/// The names behind the prefix of a feed-forward. What a family has not is empty.
struct FfnNames {
  TensorRule gate = {}, up = {}, down = {}, gate_bias = {}, up_bias = {}, down_bias = {};
};

/// A prefix with a * is that of each expert, which is its number; without one the experts lie
/// together in tensors with a dimension more.
struct FfnLayout {
  std::string_view prefix;
  const FfnNames* names;
};

/// The layouts, by what they are or by whose they are.
namespace layouts {

inline constexpr FfnNames projections{.gate = {"gate_proj.weight"},
                                      .up = {"up_proj.weight"},
                                      .down = {"down_proj.weight"},
                                      .gate_bias = {"gate_proj.bias"},
                                      .up_bias = {"up_proj.bias"},
                                      .down_bias = {"down_proj.bias"}};
inline constexpr FfnNames mixtral_names{
    .gate = {"w1.weight"}, .up = {"w3.weight"}, .down = {"w2.weight"}};
inline constexpr FfnNames smallthinker_names{
    .gate = {"gate.weight"}, .up = {"up.weight"}, .down = {"down.weight"}};
inline constexpr FfnNames up_down{.up = {"up_proj.weight"}, .down = {"down_proj.weight"}};
inline constexpr FfnNames nllb_names{.up = {"fc1.weight"},
                                     .down = {"fc2.weight"},
                                     .up_bias = {"fc1.bias"},
                                     .down_bias = {"fc2.bias"}};
inline constexpr FfnNames switch_names{.up = {"wi.weight"}, .down = {"wo.weight"}};

/// Gate and up in one tensor: what transformers 5 keeps in memory.
inline constexpr FfnNames fused{.gate = gate_of("gate_up_proj"),
                                .up = up_of("gate_up_proj"),
                                .down = {"down_proj"},
                                .gate_bias = gate_of("gate_up_proj_bias"),
                                .up_bias = up_of("gate_up_proj_bias"),
                                .down_bias = {"down_proj_bias"}};
inline constexpr FfnNames granite_names{.gate = gate_of("input_linear.weight"),
                                        .up = up_of("input_linear.weight"),
                                        .down = {"output_linear.weight"}};

inline constexpr Order transposed{.transposed = true};
inline constexpr FfnNames fused_transposed{.gate = gate_of("gate_up_proj", transposed),
                                           .up = up_of("gate_up_proj", transposed),
                                           .down = {"down_proj", transposed}};
inline constexpr FfnNames privacy_filter_names{.gate = gate_of("gate_up_proj", transposed),
                                               .up = up_of("gate_up_proj", transposed),
                                               .down = {"down_proj", transposed},
                                               .gate_bias = gate_of("gate_up_proj_bias"),
                                               .up_bias = up_of("gate_up_proj_bias"),
                                               .down_bias = {"down_proj_bias"}};
inline constexpr FfnNames aria_names{.gate = gate_of("fc1.weight", transposed),
                                     .up = up_of("fc1.weight", transposed),
                                     .down = {"fc2.weight", transposed}};

inline constexpr Order interleaved{.interleaved = true};
inline constexpr Order columns_in_turn{.transposed = true, .interleaved = true};
inline constexpr FfnNames gpt_oss_names{.gate = gate_of("gate_up_proj", columns_in_turn),
                                        .up = up_of("gate_up_proj", columns_in_turn),
                                        .down = {"down_proj", transposed},
                                        .gate_bias = gate_of("gate_up_proj_bias", interleaved),
                                        .up_bias = up_of("gate_up_proj_bias", interleaved),
                                        .down_bias = {"down_proj_bias"}};
inline constexpr FfnNames inkling_names{.gate = gate_of("w13_weight", interleaved),
                                        .up = up_of("w13_weight", interleaved),
                                        .down = {"w2_weight"}};
inline constexpr FfnNames inkling_shared_names{.gate = gate_of("shared_w13_weight", interleaved),
                                               .up = up_of("shared_w13_weight", interleaved),
                                               .down = {"shared_w2_weight"}};

/// Of a block's output: a shared expert that has nothing else.
inline constexpr FfnNames bias_alone{.down_bias = {"bias"}};

inline constexpr Order flat{.experts_in_out = true};
inline constexpr Order flat_transposed{.transposed = true, .experts_in_out = true};
inline constexpr FfnNames dbrx_names{
    .gate = {"w1", flat}, .up = {"v1", flat}, .down = {"w2", flat_transposed}};
inline constexpr FfnNames nomic_names{.up = {"w1", flat}, .down = {"w2", flat_transposed}};

/// Those of GGUF, behind "blk.3."; gate and up in two tensors or in one, and the shared expert's.
inline constexpr FfnNames gguf_names{.gate = {"ffn_gate_exps.weight"},
                                     .up = {"ffn_up_exps.weight"},
                                     .down = {"ffn_down_exps.weight"},
                                     .gate_bias = {"ffn_gate_exps.bias"},
                                     .up_bias = {"ffn_up_exps.bias"},
                                     .down_bias = {"ffn_down_exps.bias"}};
inline constexpr FfnNames gguf_fused_names{.gate = gate_of("ffn_gate_up_exps.weight"),
                                           .up = up_of("ffn_gate_up_exps.weight"),
                                           .down = {"ffn_down_exps.weight"},
                                           .gate_bias = gate_of("ffn_gate_up_exps.bias"),
                                           .up_bias = up_of("ffn_gate_up_exps.bias"),
                                           .down_bias = {"ffn_down_exps.bias"}};
inline constexpr FfnNames gguf_shared_names{.gate = {"gate_shexp.weight"},
                                            .up = {"up_shexp.weight"},
                                            .down = {"down_shexp.weight"},
                                            .gate_bias = {"gate_shexp.bias"},
                                            .up_bias = {"up_shexp.bias"},
                                            .down_bias = {"down_shexp.bias"}};
/// Of small experts that groups of the others share.
inline constexpr FfnNames gguf_chunk_names{.gate = {"ffn_gate_chexps.weight"},
                                           .up = {"ffn_up_chexps.weight"},
                                           .down = {"ffn_down_chexps.weight"}};

}  // namespace layouts

/// Where element (row, col) of a parameter is: first + row * row_step + col * col_step of the
/// tensor's elements, counted from its first one.
struct Place {
  std::string tensor;
  std::vector<Index> shape;  ///< of the tensor
  Index first = 0, row_step = 0, col_step = 0;
};

/// Outputs [begin, begin + count) of a parameter, which are its rows, or columns of a vector.
struct PartPlace {
  Index begin, count;
  Place place;
};

/// A part of a parameter, or of its gradient.
template <class M>
auto part_of(M& parameter, const PartPlace& part) {
  const bool is_vector = parameter.rows() == 1;
  return parameter.block(is_vector ? 0 : part.begin, is_vector ? part.begin : 0,
                         is_vector ? 1 : part.count, is_vector ? part.count : parameter.cols());
}

/// Of a parameter of this shape under the rule. `expert` of `num_experts` where the tensor is that
/// of all experts, else num_experts is 0.
inline Place place_of(const TensorRule& rule, std::string tensor, Shape shape, bool is_vector,
                      Index expert = 0, Index num_experts = 0) {
  const Index outputs = is_vector ? shape.cols : shape.rows;
  const Index inputs = is_vector ? 1 : shape.cols;
  const Index all = outputs * rule.parts;
  const Index step =
      (rule.order.interleaved ? rule.parts : 1) * (rule.order.transposed ? 1 : inputs);
  Place place{.tensor = std::move(tensor), .shape = {all}};
  place.first = expert * all * inputs + rule.part * (rule.order.interleaved ? 1 : outputs) *
                                            (rule.order.transposed ? 1 : inputs);
  place.row_step = is_vector ? 0 : step;
  place.col_step = is_vector ? step : rule.order.transposed ? all : 1;
  if (!is_vector) {
    place.shape =
        rule.order.transposed ? std::vector<Index>{inputs, all} : std::vector<Index>{all, inputs};
  }
  if (num_experts > 0 && rule.order.experts_in_out) {
    place.shape[0] *= num_experts;
  } else if (num_experts > 0) {
    place.shape.insert(place.shape.begin(), num_experts);
  }
  return place;
}

}  // namespace moe::inline MOE_INSTRUCTION_SET::io
