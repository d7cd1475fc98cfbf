// SPDX-License-Identifier: Apache-2.0
// SparseMixer: a rule for a token, SparseMixer-v2 (Liu et al. 2024, GRIN: GRadient-INformed MoE;
// the router of Phi-3.5-MoE). Two experts, one after the other, each among those whose
// logit is near the largest left; in training each is drawn, and Heun's third-order method
// estimates the gradient of the draw.
//
// Looks at one token, and is causal. What is drawn goes by the seed of the call and the place of
// the token in the batch.
#pragma once

#include <algorithm>
#include <cmath>

#include "../detail/random.hpp"
#include "../kernels/topk.hpp"
#include "concepts.hpp"
#include "score.hpp"

namespace moe::inline MOE_INSTRUCTION_SET {

struct SparseMixerConfig {
  /// An expert e is near if (max - z_e) / max(|z_e|, max) <= 2 jitter (router_jitter_noise).
  double jitter = 0.01;

  void validate() const {
    detail::throw_unless(std::isfinite(jitter) && jitter >= 0.0, "SparseMixer: jitter = ", jitter,
                         ", expected at least 0 and finite");
  }
};

/// A pick weighs its softmax among the near experts; the second is made without the first. With a
/// noise seed picks are drawn by that softmax, and one that is not the best weighs, three times in
/// four, a third of it. The gradient of a weight is that of its softmax: exact without a noise
/// seed, an estimate with one. Scores for losses are the softmax over all experts.
template <Real W>
class SparseMixer {
 public:
  using Params = NoParams;
  static constexpr const char* name = "SparseMixer";

  /// Throws std::invalid_argument if there are less than two experts, or the config is out of its
  /// range.
  SparseMixer(Index num_experts, const SparseMixerConfig& config)
      : num_experts_(num_experts), config_(config) {
    config.validate();
    detail::throw_unless(num_experts >= picks, "SparseMixer: num_experts = ", num_experts,
                         ", expected at least 2");
  }

  Index num_experts() const { return num_experts_; }
  Index top_k() const { return picks; }
  const SparseMixerConfig& config() const { return config_; }
  /// This rule in another scalar.
  template <Real V>
  SparseMixer<V> cast() const {
    return {num_experts_, config_};
  }
  double multiply_adds(Index rows) const { return 3.0 * score_work(rows, num_experts_); }

  /// What is added to a logit where an expert is drawn, from a Gumbel distribution.
  static double drawing_noise(std::uint64_t seed, Index row, Index pick, Index e,
                              Index num_experts) {
    const detail::CounterRandom random(seed, draw_stream);
    const auto place = static_cast<std::uint64_t>((row * picks + pick) * num_experts + e);
    return -std::log(-std::log(random.uniform(place) + 0x1.0p-54));
  }
  /// Whether a pick that is not the best weighs a third: three times in four.
  static bool third(std::uint64_t seed, Index row, Index pick) {
    const auto place = static_cast<std::uint64_t>(row * picks + pick);
    return detail::CounterRandom(seed, third_stream).uniform(place) <= 0.75;
  }

  void route(const Params&, const TokenRoute<W>& token) const {
    write_scores(Score::softmax, token);
    std::fill(token.expert, token.expert + picks, none);
    std::fill(token.weight, token.weight + picks, W(0));
    for (Index pick = 0; pick < picks; ++pick) {
      const NearExperts left(token, pick, config_.jitter);
      if (left.best == none) {
        return;
      }
      token.expert[pick] = token.noise_seed ? draw(left, token, pick) : left.best;
      token.weight[pick] = left.softmax(token.expert[pick]);
      if (token.noise_seed && token.expert[pick] != left.best &&
          third(*token.noise_seed, token.row, pick)) {
        token.weight[pick] *= W(1.0 / 3.0);
      }
    }
  }

  void backward(const Params&, const TokenGradient<W>& token) const {
    for (Index pick = 0; pick < picks && token.expert[pick] != none; ++pick) {
      const NearExperts left(token, pick, config_.jitter);
      const W slope = token.dweight[pick] * left.softmax(token.expert[pick]);
      for (Index e = 0; e < token.num_experts; ++e) {
        if (left.has(e)) {
          token.dlogits[e] -= slope * left.softmax(e);
        }
      }
      token.dlogits[token.expert[pick]] += slope;
    }
    add_score_gradient(Score::softmax, token);
  }

 private:
  enum Stream : std::uint64_t { draw_stream = 5, third_stream = 6 };
  static constexpr Index picks = 2;

  /// The experts that a pick may take, of a token forward or backward.
  struct NearExperts {
    const std::uint8_t* allowed;
    const W* logits;
    ExpertId before;  // the earlier pick, or none
    W range, max = W(0), sum = W(0);
    ExpertId best = none;

    template <class Token>
    NearExperts(const Token& token, Index pick, double jitter)
        : allowed(token.allowed),
          logits(token.logits),
          before(pick == 0 ? none : token.expert[0]),
          range(W(2.0 * jitter)) {
      using std::exp;
      for (Index e = 0; e < token.num_experts; ++e) {
        if (is_left(e) && (best == none || kernels::ranks_above(logits[e], logits[best]))) {
          best = static_cast<ExpertId>(e);
        }
      }
      max = best == none ? W(0) : logits[best];
      for (Index e = 0; e < token.num_experts; ++e) {
        sum += has(e) ? W(exp(logits[e] - max)) : W(0);
      }
    }

    bool is_left(Index e) const { return e != before && (allowed == nullptr || allowed[e] != 0); }
    bool has(Index e) const {
      using std::abs;
      const W size = abs(logits[e]);
      return is_left(e) && !((max - logits[e]) / (size > max ? size : max) > range);
    }
    W softmax(Index e) const {
      using std::exp;
      return exp(logits[e] - max) / sum;
    }
  };

  static ExpertId draw(const NearExperts& left, const TokenRoute<W>& token, Index pick) {
    ExpertId best = none;
    for (Index e = 0; e < token.num_experts; ++e) {
      if (!left.has(e)) {
        continue;
      }
      token.scratch[e] = token.logits[e] +
                         W(drawing_noise(*token.noise_seed, token.row, pick, e, token.num_experts));
      if (best == none || kernels::ranks_above(token.scratch[e], token.scratch[best])) {
        best = static_cast<ExpertId>(e);
      }
    }
    return best;
  }

  Index num_experts_;
  SparseMixerConfig config_;
};

}  // namespace moe::inline MOE_INSTRUCTION_SET
