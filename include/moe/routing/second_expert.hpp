// SPDX-License-Identifier: Apache-2.0
// SecondExpert: a rule for a token, top-2 with a second expert that is not always taken (Lepikhin
// et al. 2020, GShard; NLLB team 2022; Mesh TensorFlow's second_policy).
//
// Looks at one token, and is causal. What is drawn goes by the seed of the call and the place of
// the token in the batch.
#pragma once

#include <cmath>

#include "../detail/random.hpp"
#include "../kernels/topk.hpp"
#include "concepts.hpp"
#include "score.hpp"
#include "weights.hpp"

namespace moe::inline MOE_INSTRUCTION_SET {

/// When a token takes its second expert: always; if its value is above the threshold; with the
/// probability value / threshold, at most 1; or always, but one that is drawn by the probabilities
/// of all experts but the first. Without a noise seed random and sampled are as always.
enum class SecondPolicy { always, threshold, random, sampled };

/// Whether the weights are divided by their sum + 1e-20: not; before the second is left out, so
/// that the first keeps its share; or after, so that it alone weighs 1.
enum class SecondNormalise { never, before, after };

/// As GShard has it. NLLB has of_share = false, which is the second's plain probability, and
/// normalises after.
struct SecondExpertConfig {
  SecondPolicy policy = SecondPolicy::random;
  double threshold = 0.5;  ///< in (0, 1]
  /// The second's value is its share of the probabilities of the two, else its probability.
  bool of_share = true;
  SecondNormalise normalise = SecondNormalise::before;

  void validate() const {
    detail::check_enum(policy, SecondPolicy::sampled, "SecondExpert: policy");
    detail::check_enum(normalise, SecondNormalise::after, "SecondExpert: normalise");
    detail::throw_unless(threshold > 0.0 && threshold <= 1.0,
                         "SecondExpert: threshold = ", threshold, ", expected in (0, 1]");
  }
};

template <Real W>
class SecondExpert {
 public:
  using Params = NoParams;
  static constexpr const char* name = "SecondExpert";

  /// Throws std::invalid_argument if there are less than two experts, or the config is out of its
  /// range.
  SecondExpert(Index num_experts, const SecondExpertConfig& config)
      : num_experts_(num_experts), config_(config) {
    config.validate();
    detail::throw_unless(num_experts >= 2, "SecondExpert: num_experts = ", num_experts,
                         ", expected at least 2");
  }

  Index num_experts() const { return num_experts_; }
  Index top_k() const { return 2; }
  const SecondExpertConfig& config() const { return config_; }
  /// This rule in another scalar.
  template <Real V>
  SecondExpert<V> cast() const {
    return {num_experts_, config_};
  }
  double multiply_adds(Index rows) const { return score_work(rows, num_experts_); }

  /// Uniform in (0, 1), by which the second of a token is kept.
  static double keeping_draw(std::uint64_t seed, Index row) {
    return open(detail::CounterRandom(seed, keep_stream), row);
  }
  /// What is added to a logit where the second is sampled, from a Gumbel distribution.
  static double sampling_draw(std::uint64_t seed, Index row, Index e, Index num_experts) {
    const detail::CounterRandom random(seed, sample_stream);
    return -std::log(-std::log(open(random, row * num_experts + e)));
  }

  void route(const Params&, const TokenRoute<W>& token) const {
    write_scores(Score::softmax, token);
    Index count = kernels::top_k(token.logits, token.allowed, token.num_experts, 2, token.expert);
    if (count == 2 && config_.policy == SecondPolicy::sampled && token.noise_seed) {
      token.expert[1] = sample(token);
    }
    const bool left_out = count == 2 && !keeps_second(token);
    const WeightConfig weight{.renormalise = config_.normalise != SecondNormalise::never};
    if (config_.normalise == SecondNormalise::before) {
      write_weights(weight, count, token);
    }
    if (left_out) {
      token.expert[1] = none;
      token.weight[1] = W(0);
      count = 1;
    }
    if (config_.normalise != SecondNormalise::before) {
      write_weights(weight, count, token);
    }
  }

  void backward(const Params&, const TokenGradient<W>& token) const {
    const bool before = config_.normalise == SecondNormalise::before;
    ExpertId best[2] = {none, none};
    if (before && token.expert[1] == none) {
      kernels::top_k(token.logits, token.allowed, token.num_experts, 2, best);
    }
    if (best[1] == none) {
      add_weight_gradient({.renormalise = config_.normalise != SecondNormalise::never}, token);
    } else {  // the second that was left out is in the sum that divides the first
      const auto prob = [&](Index k) { return token.probs[best[k]]; };
      const W sum = Divisor<W>({}, 2, prob).value;
      const W mean = token.dweight[0] * token.weight[0];
      token.dprobs[best[0]] += (token.dweight[0] - mean) / sum;
      token.dprobs[best[1]] -= mean / sum;
    }
    add_score_gradient(Score::softmax, token);
  }

 private:
  enum Stream : std::uint64_t { keep_stream = 3, sample_stream = 4 };

  static double open(const detail::CounterRandom& random, Index place) {
    return random.uniform(static_cast<std::uint64_t>(place)) + 0x1.0p-54;
  }

  /// The best but the first, by logits with noise.
  static ExpertId sample(const TokenRoute<W>& token) {
    ExpertId best = none;
    for (Index e = 0; e < token.num_experts; ++e) {
      const bool masked = token.allowed != nullptr && token.allowed[e] == 0;
      if (masked || e == token.expert[0]) {
        continue;
      }
      token.scratch[e] =
          token.logits[e] + W(sampling_draw(*token.noise_seed, token.row, e, token.num_experts));
      if (best == none || kernels::ranks_above(token.scratch[e], token.scratch[best])) {
        best = static_cast<ExpertId>(e);
      }
    }
    return best;
  }

  bool keeps_second(const TokenRoute<W>& token) const {
    const W first = token.probs[token.expert[0]], second = token.probs[token.expert[1]];
    const W value = config_.of_share ? second / (first + second) : second;
    switch (config_.policy) {
      case SecondPolicy::threshold:
        return value > W(config_.threshold);
      case SecondPolicy::random:
        return !token.noise_seed ||
               value > W(config_.threshold * keeping_draw(*token.noise_seed, token.row));
      case SecondPolicy::always:
      case SecondPolicy::sampled:
        break;
    }
    return true;
  }

  Index num_experts_;
  SecondExpertConfig config_;
};

}  // namespace moe::inline MOE_INSTRUCTION_SET
