// SPDX-License-Identifier: Apache-2.0
// What a layer is: MoEConfig, with a config for each of its parts. Aggregates of numbers and closed
// choices, checked by validate() when a layer is made.
#pragma once

#include <array>
#include <cmath>
#include <limits>
#include <optional>

#include "detail/check.hpp"
#include "router_config.hpp"
#include "types.hpp"

namespace moe::inline MOE_INSTRUCTION_SET {

enum class Activation { relu, relu_squared, gelu_erf, gelu_tanh, silu };
inline constexpr std::array all_activations{Activation::relu, Activation::relu_squared,
                                            Activation::gelu_erf, Activation::gelu_tanh,
                                            Activation::silu};

/// A feed-forward: y = act(x W_up^T) W_down^T, or gated y = (act(x W_gate^T) * x W_up^T) W_down^T.
struct ExpertConfig {
  Activation activation = Activation::silu;
  bool gated = true;
  bool bias = false;
  /// Multiplies y by sigmoid(x . output_gate), as the shared expert of Qwen2-MoE.
  bool output_gate = false;
};

/// Which tokens an expert over capacity gives up: the last ones, or those with the lowest
/// probability (ties: the last).
enum class DropPolicy { position, probability };

/// The most rows that an expert may have of a sequence. Neither set: dropless.
struct Capacity {
  /// ceil(factor * tokens * top_k / num_experts) rows.
  std::optional<double> factor = std::nullopt;
  std::optional<Index> rows = std::nullopt;
  DropPolicy policy = DropPolicy::position;

  bool limited() const { return factor || rows; }

  void validate() const {
    detail::throw_unless(!(factor && rows), "Capacity: factor and rows are both set, expected one");
    if (factor) {
      detail::throw_unless(std::isfinite(*factor) && *factor > 0.0, "Capacity: factor = ", *factor,
                           ", expected positive and finite");
    }
    if (rows) {
      detail::throw_unless(*rows >= 0, "Capacity: rows = ", *rows, ", expected at least 0");
    }
  }
};

/// An expert that every token takes beside the routed ones, of the same kind but its own width.
struct SharedExpertConfig {
  Index d_ff = 0;
  bool output_gate = false;
};

/// The weight multiplies the expert's output, or its input (Llama 4).
enum class WeightOn { output, input };

struct MoEConfig {
  Index d_model = 0;
  Index d_ff = 0;
  Index num_experts = 0;
  Index top_k = 0;
  /// Output width; d_model if not set.
  std::optional<Index> d_out = std::nullopt;
  ExpertConfig expert = {};
  RouterConfig router = {};
  Capacity capacity = {};
  std::optional<SharedExpertConfig> shared = std::nullopt;
  WeightOn weight_on = WeightOn::output;

  Index output_width() const { return d_out.value_or(d_model); }

  /// Throws std::invalid_argument naming the first value that breaks a rule.
  void validate() const;
};

inline void MoEConfig::validate() const {
  const auto positive = [](Index value, const char* name) {
    detail::throw_unless(value > 0, "MoEConfig: ", name, " = ", value, ", expected at least 1");
  };
  const auto fits = [](Index rows, Index cols, const char* rows_name, const char* cols_name) {
    // Bytes of a double, so that no scalar overflows.
    constexpr Index limit = (std::numeric_limits<Index>::max)() / 8;
    detail::throw_unless(rows <= limit / cols, "MoEConfig: ", rows_name, " = ", rows, " times ",
                         cols_name, " = ", cols, " overflows");
  };
  positive(d_model, "d_model");
  positive(d_ff, "d_ff");
  positive(output_width(), "d_out");
  positive(num_experts, "num_experts");
  detail::throw_unless(num_experts <= (std::numeric_limits<ExpertId>::max)(),
                       "MoEConfig: num_experts = ", num_experts, ", expected at most ",
                       (std::numeric_limits<ExpertId>::max)());
  detail::throw_unless(top_k >= 1 && top_k <= num_experts, "MoEConfig: top_k = ", top_k,
                       ", expected in [1, num_experts = ", num_experts, "]");
  fits(d_ff, d_model, "d_ff", "d_model");
  fits(d_ff, output_width(), "d_ff", "d_out");
  fits(num_experts, d_model, "num_experts", "d_model");
  router.validate(num_experts, top_k);
  capacity.validate();
  if (shared) {
    positive(shared->d_ff, "shared.d_ff");
    fits(shared->d_ff, d_model, "shared.d_ff", "d_model");
    fits(shared->d_ff, output_width(), "shared.d_ff", "d_out");
  }
}

}  // namespace moe::inline MOE_INSTRUCTION_SET
