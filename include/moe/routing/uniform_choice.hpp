// SPDX-License-Identifier: Apache-2.0
// UniformChoice: a rule for a token that does not ask the gate which experts it takes. They are
// drawn (Zuo et al. 2022, THOR), or taken in turn: an even load, for benchmarks and as what a
// learned router has to beat.
//
// Looks at one token and at its place in the batch, and is causal.
#pragma once

#include <algorithm>

#include "../detail/random.hpp"
#include "../flops.hpp"
#include "../kernels/topk.hpp"
#include "concepts.hpp"
#include "score.hpp"
#include "weights.hpp"

namespace moe::inline MOE_INSTRUCTION_SET {

/// Drawn by the noise seed of the call, 0 without one; or from row * top_k on in a circle.
enum class UniformOrder { random, round_robin };

struct UniformChoiceConfig {
  Index top_k = 1;
  UniformOrder order = UniformOrder::random;
  /// Weights are the gate's, unless source = WeightSource::one.
  WeightConfig weight = {};

  void validate(Index num_experts) const {
    detail::throw_unless(top_k >= 1 && top_k <= num_experts, "UniformChoice: top_k = ", top_k,
                         ", expected in [1, num_experts = ", num_experts, "]");
    detail::check_enum(order, UniformOrder::round_robin, "UniformChoice: order");
    weight.validate_without_tensors("UniformChoice");
  }
};

/// Scores are a softmax. A token's experts differ, and masked ones are passed over.
template <Real W>
class UniformChoice {
 public:
  using Params = NoParams;
  static constexpr const char* name = "UniformChoice";
  static constexpr bool obeys_call = true;

  /// Throws std::invalid_argument if the config is out of its range.
  UniformChoice(Index num_experts, const UniformChoiceConfig& config)
      : num_experts_(num_experts), config_(config) {
    config.validate(num_experts);
  }

  Index num_experts() const { return num_experts_; }
  Index top_k() const { return config_.top_k; }
  const UniformChoiceConfig& config() const { return config_; }
  /// This rule in another scalar.
  template <Real V>
  UniformChoice<V> cast() const {
    return {num_experts_, config_};
  }
  double multiply_adds(Index rows) const { return score_work(rows, num_experts_); }

  /// Of so many tokens without masks.
  Flops forward_flops(Index tokens) const {
    return tokens * detail::flops_of_one(0, score_flops(Score::softmax, num_experts_) +
                                                weight_flops(config_.weight, config_.top_k));
  }
  Flops backward_flops(Index tokens) const {
    return tokens *
           detail::flops_of_one(0, score_gradient_flops(Score::softmax, num_experts_) +
                                       weight_gradient_flops(config_.weight, config_.top_k));
  }

  /// Uniform in [0, 1): a token takes the experts with the largest.
  static double draw(std::uint64_t seed, Index row, Index e, Index num_experts) {
    return detail::CounterRandom(seed, stream)
        .uniform(static_cast<std::uint64_t>(row * num_experts + e));
  }

  void route(const Params&, const TokenRoute<W>& token) const {
    write_scores(Score::softmax, token);
    const Index chosen = token.chosen                                 ? token.top_k
                         : config_.order == UniformOrder::round_robin ? take_turn(token)
                                                                      : take_drawn(token);
    write_weights(config_.weight, chosen, token);
  }

  void backward(const Params&, const TokenGradient<W>& token) const {
    add_weight_gradient(config_.weight, token);
    add_score_gradient(Score::softmax, token);
  }

 private:
  static constexpr std::uint64_t stream = 7;

  static Index take_turn(const TokenRoute<W>& token) {
    std::fill(token.expert, token.expert + token.top_k, none);
    Index count = 0;
    for (Index i = 0; count < token.top_k && i < token.num_experts; ++i) {
      const Index e = (token.row * token.top_k + i) % token.num_experts;
      if (token.allowed == nullptr || token.allowed[e] != 0) {
        token.expert[count++] = static_cast<ExpertId>(e);
      }
    }
    return count;
  }

  static Index take_drawn(const TokenRoute<W>& token) {
    for (Index e = 0; e < token.num_experts; ++e) {
      token.scratch[e] = W(draw(token.noise_seed.value_or(0), token.row, e, token.num_experts));
    }
    return kernels::top_k(token.scratch, token.allowed, token.num_experts, token.top_k,
                          token.expert);
  }

  Index num_experts_;
  UniformChoiceConfig config_;
};

}  // namespace moe::inline MOE_INSTRUCTION_SET
