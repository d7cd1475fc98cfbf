// SPDX-License-Identifier: Apache-2.0
// What a layer is: MoEConfig, with a config for each of its parts. Aggregates of numbers and closed
// choices, checked by validate() when a layer is made.
#pragma once

#include <array>
#include <cmath>
#include <limits>
#include <optional>
#include <tuple>

#include "detail/check.hpp"
#include "router_config.hpp"
#include "types.hpp"

namespace moe::inline MOE_INSTRUCTION_SET {

enum class Activation { relu, relu_squared, gelu_erf, gelu_tanh, gelu_quick, silu, situ };
inline constexpr std::array all_activations{
    Activation::relu,       Activation::relu_squared, Activation::gelu_erf, Activation::gelu_tanh,
    Activation::gelu_quick, Activation::silu,         Activation::situ};

/// Which side of the activation a limit L cuts: act(min(gate, L)), as DeepSeek-V4 and gpt-oss, or
/// min(act(gate), L), as Step-3.7 and Ling-3. Either way up is cut to [-L, L].
enum class Clamp { before, after };

/// A feed-forward: y = act(x W_up^T) W_down^T, or gated y = (act(x W_gate^T) * x W_up^T) W_down^T.
/// SwiGLU-OAI of gpt-oss: {.activation = gelu_quick, .limit = 7.0, .up_offset = 1.0}.
struct ExpertConfig {
  Activation activation = Activation::silu;
  bool gated = true;
  bool bias = false;
  /// Multiplies y by sigmoid(x . output_gate), as the shared expert of Qwen2-MoE.
  bool output_gate = false;
  /// The L of a gated pair; not set: no limit.
  std::optional<double> limit = std::nullopt;
  Clamp clamp = Clamp::before;
  /// Of a gated pair: added to up behind its limit.
  double up_offset = 0.0;
  /// gelu_quick: z sigmoid(alpha z).
  double alpha = 1.702;
  /// situ: the bounds of gate and up, in the order of Kimi-K3's beta and linear_beta.
  double gate_bound = 4.0, up_bound = 25.0;

  /// Whether experts of both compute the same of the same parameters.
  bool operator==(const ExpertConfig& other) const;
  void validate() const;

 private:
  /// All of them: the binding counts. A tuple compares floats where no warning looks.
  auto fields() const {
    const auto& [kind, has_gate, has_bias, gates_output, most, cut, offset, factor, bound1,
                 bound2] = *this;
    return std::tie(kind, has_gate, has_bias, gates_output, most, cut, offset, factor, bound1,
                    bound2);
  }
};

inline bool ExpertConfig::operator==(const ExpertConfig& other) const {
  return fields() == other.fields();
}

inline void ExpertConfig::validate() const {
  const auto positive = [](double value, const char* name) {
    detail::throw_unless(std::isfinite(value) && value > 0.0, "ExpertConfig: ", name, " = ", value,
                         ", expected positive and finite");
  };
  detail::check_enum(activation, all_activations.back(), "ExpertConfig: activation");
  detail::check_enum(clamp, Clamp::after, "ExpertConfig: clamp");
  positive(alpha, "alpha");
  positive(gate_bound, "gate_bound");
  positive(up_bound, "up_bound");
  detail::throw_unless(std::isfinite(up_offset), "ExpertConfig: up_offset = ", up_offset,
                       ", expected finite");
  if (limit) {
    positive(*limit, "limit");
  }
  const bool cut = limit || std::abs(up_offset) > 0.0;
  detail::throw_unless(!cut || gated,
                       "ExpertConfig: limit or up_offset is set without a gate, expected gated");
  detail::throw_unless(!cut || activation != Activation::situ,
                       "ExpertConfig: limit or up_offset is set with situ, which has bounds of its "
                       "own, expected neither");
}

/// Which choices an expert over capacity gives up: the last ones; those with the lowest probability
/// (ties: the last); second choices before first ones, of each the last (Lepikhin et al. 2020,
/// GShard); or of each those of tokens whose first choice has the lowest probability (Riquelme et
/// al. 2021, batch prioritized routing; NLLB).
enum class DropPolicy { position, probability, second_choices, second_choices_by_priority };

/// The most rows that an expert may have of a sequence. Neither set: dropless.
struct Capacity {
  /// ceil(factor * tokens * top_k / num_experts) rows.
  std::optional<double> factor = std::nullopt;
  std::optional<Index> rows = std::nullopt;
  DropPolicy policy = DropPolicy::position;

  bool limited() const { return factor || rows; }

  void validate() const {
    detail::check_enum(policy, DropPolicy::second_choices_by_priority, "Capacity: policy");
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

/// An expert that every token takes beside the routed ones, of the same kind but for what is here.
struct SharedExpertConfig {
  /// 0, with a bias: y has this bias of the layer's once a token, as JetMoE's.
  Index d_ff = 0;
  /// ExpertConfig::bias of this expert; not set: that of the routed ones.
  std::optional<bool> bias = std::nullopt;
  bool output_gate = false;
  /// ExpertConfig::limit of this expert; that of the routed ones is theirs alone.
  std::optional<double> limit = std::nullopt;
  /// Multiplies its output; not its part of a token's weights, which a router may give it.
  double scale = 1.0;
  /// y = c0 routed + c1 shared, with the two coefficients of a token learned (coefficients.hpp);
  /// without scales of either, and latent experts.
  bool coefficients = false;
};

/// The weight multiplies the expert's output, its input (Llama 4), or its hidden row and the bias
/// behind it: the output's value, for which backward needs no stored output.
enum class WeightOn { output, input, hidden };

/// How a layer uses its parts: y = routed_scale * (sum of the routed outputs) + shared_scale *
/// (shared output), summed in float at least and rounded once. An average has 0.5 twice
/// (Cohere2), Grok-2 sqrt(0.5); routed_scale alone is that of MiniMax-M3, Laguna and Step.
struct LayerOptions {
  Capacity capacity = {};
  WeightOn weight_on = WeightOn::output;
  double routed_scale = 1.0, shared_scale = 1.0;

  bool unscaled() const {
    return detail::equals(routed_scale, 1.0) && detail::equals(shared_scale, 1.0);
  }

  void validate() const {
    capacity.validate();
    detail::check_enum(weight_on, WeightOn::hidden, "LayerOptions: weight_on");
    for (const double scale : {routed_scale, shared_scale}) {
      detail::throw_unless(std::isfinite(scale) && scale > 0.0, "LayerOptions: a scale is ", scale,
                           ", expected positive and finite");
    }
  }
};

/// Experts of another width than the tokens, between two projections (Nemotron-3 Super, Kimi-K3).
struct LatentConfig {
  Index width = 0;
  bool norm = false;  ///< an RMSNorm of the sum of their outputs
  double eps = 1e-6;  ///< of the norm

  void validate() const {
    detail::throw_unless(width > 0, "LatentConfig: width = ", width, ", expected at least 1");
    detail::throw_unless(std::isfinite(eps) && eps >= 0.0, "LatentConfig: eps = ", eps,
                         ", expected finite and at least 0");
  }
};

/// An RMSNorm of a layer's output, shared expert and scales included (A.X-K1).
struct OutputNormConfig {
  double eps = 1e-6;

  void validate() const {
    detail::throw_unless(std::isfinite(eps) && eps >= 0.0, "OutputNormConfig: eps = ", eps,
                         ", expected finite and at least 0");
  }
};

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
  std::optional<LatentConfig> latent = std::nullopt;
  std::optional<OutputNormConfig> output_norm = std::nullopt;
  WeightOn weight_on = WeightOn::output;
  /// Multiplies the sum of the routed outputs; RouterConfig's scale is on the weights themselves.
  double routed_scale = 1.0;

  Index output_width() const { return d_out.value_or(d_model); }
  /// Of the rows that the routed experts read, and of those that they write.
  Index expert_d_in() const { return latent ? latent->width : d_model; }
  Index expert_d_out() const { return latent ? latent->width : output_width(); }
  /// The kind of the shared expert, which there is.
  ExpertConfig shared_expert() const {
    ExpertConfig kind = expert;
    kind.output_gate = shared->output_gate;
    kind.bias = shared->bias.value_or(expert.bias);
    kind.limit = shared->limit;
    return kind;
  }
  LayerOptions options() const {
    return {capacity, weight_on, routed_scale, shared ? shared->scale : 1.0};
  }

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
  if (output_norm) {
    output_norm->validate();
  }
  if (latent) {
    latent->validate();
    fits(latent->width, d_ff, "latent.width", "d_ff");
    fits(latent->width, d_model, "latent.width", "d_model");
    fits(latent->width, output_width(), "latent.width", "d_out");
  }
  fits(d_ff, d_model, "d_ff", "d_model");
  fits(d_ff, output_width(), "d_ff", "d_out");
  fits(num_experts, d_model, "num_experts", "d_model");
  expert.validate();
  router.validate(num_experts, top_k);
  options().validate();
  if (shared) {
    shared_expert().validate();
    if (shared->d_ff != 0 || !shared_expert().bias) {
      positive(shared->d_ff, "shared.d_ff");
    }
    fits(shared->d_ff, d_model, "shared.d_ff", "d_model");
    fits(shared->d_ff, output_width(), "shared.d_ff", "d_out");
    detail::throw_unless(!shared->coefficients || (!latent && options().unscaled()),
                         "MoEConfig: shared.coefficients with latent experts or a scale that is "
                         "not 1, expected neither");
  }
}

}  // namespace moe::inline MOE_INSTRUCTION_SET
