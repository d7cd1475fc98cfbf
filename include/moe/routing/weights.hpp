// SPDX-License-Identifier: Apache-2.0
// The last step of routing: from the logits and scores of a token's chosen experts to their
// weights, and the gradient of the weights back to them.
#pragma once

#include <algorithm>
#include <type_traits>

#include "../config.hpp"
#include "../kernels/softmax.hpp"
#include "gated_table.hpp"

namespace moe::inline MOE_INSTRUCTION_SET {

/// What the weights of a rule take from its parameters; null where it has no such tensor.
template <Real W>
struct WeightTensors {
  const W* selection_bias = nullptr;  ///< (E)
  const W* expert_scale = nullptr;    ///< (E), or (1) that is for all
  bool one_scale = false;

  const W& scale_of(Index expert) const { return expert_scale[one_scale ? 0 : expert]; }
};

/// What the weights of a token are divided by.
template <Real W>
struct Divisor {
  W value;
  bool of_epsilon;  ///< the sum was less than epsilon, which then stands for it

  Divisor(const WeightConfig& config, Index count, const auto& weight_of) {
    const bool added = config.epsilon_rule == EpsilonRule::added;
    value = added ? W(config.epsilon) : W(0);
    for (Index k = 0; k < count; ++k) {
      value += weight_of(k);
    }
    of_epsilon = !added && value < W(config.epsilon);
    value = of_epsilon ? W(config.epsilon) : value;
  }
};

/// The weight of an expert before softmax or division. Token is a TokenRoute or a TokenGradient.
template <Real W, class Token>
W source_of(const WeightConfig& config, const std::type_identity_t<WeightTensors<W>>& tensors,
            const Token& token, Index expert) {
  switch (config.source) {
    case WeightSource::score:
      return token.probs[expert];
    case WeightSource::biased_score:
      return token.probs[expert] + tensors.selection_bias[expert];
    case WeightSource::softmax_of_chosen:
      return token.logits[expert];
    case WeightSource::one:
      break;
  }
  return W(1);
}

/// Writes the weights of a token, of whose choices the first `chosen` are used where they are not
/// `none`, from its logits and probs.
template <Real W>
void write_weights(const WeightConfig& config, Index chosen, const TokenRoute<W>& token,
                   const std::type_identity_t<WeightTensors<W>>& tensors = {}) {
  W* weight = token.weight;
  const bool softmax = config.source == WeightSource::softmax_of_chosen;
  std::fill(weight, weight + token.top_k, W(0));
  bool any = false;
  for (Index k = 0; k < chosen; ++k) {
    const ExpertId e = token.expert[k];
    if (e == none) {
      weight[k] = softmax ? kernels::minus_infinity<W>() : W(0);
      continue;
    }
    any = true;
    weight[k] = source_of<W>(config, tensors, token, e);
  }
  if (!any) {
    return std::fill(weight, weight + token.top_k, W(0));  // a softmax of nothing would be NaN
  }
  if (softmax) {
    kernels::softmax(weight, chosen, weight);
  } else if (config.renormalises(token.top_k)) {
    const Divisor<W> sum(config, chosen, [&](Index k) { return weight[k]; });
    for (Index k = 0; k < chosen; ++k) {
      weight[k] /= sum.value;
    }
  }
  for (Index k = 0; k < chosen; ++k) {
    weight[k] *= W(config.scale);
  }
  for (Index k = 0; tensors.expert_scale != nullptr && k < chosen; ++k) {
    if (token.expert[k] != none) {
      weight[k] *= tensors.scale_of(token.expert[k]);
    }
  }
}

/// The weights of a token once more, before the scales of their experts, which may be 0.
template <Real W>
class UnscaledWeights {
 public:
  UnscaledWeights(const WeightConfig& config, const WeightTensors<W>& tensors,
                  const TokenGradient<W>& token)
      : config_(config), tensors_(tensors), token_(token) {
    using std::exp;
    if (config.source != WeightSource::softmax_of_chosen) {
      if (config.renormalises(token.top_k)) {
        sum_ = Divisor<W>(config, token.top_k, [&](Index k) { return source(k); }).value;
      }
      return;
    }
    for (Index k = 0; k < token.top_k; ++k) {
      max_ = token.expert[k] != none && source(k) > max_ ? source(k) : max_;
    }
    sum_ = W(0);
    for (Index k = 0; k < token.top_k; ++k) {
      sum_ += token.expert[k] != none ? exp(source(k) - max_) : W(0);
    }
  }

  /// Of a choice that is used.
  W operator()(Index k) const {
    using std::exp;
    const bool softmax = config_.source == WeightSource::softmax_of_chosen;
    return W(config_.scale) * (softmax ? exp(source(k) - max_) : source(k)) / sum_;
  }

 private:
  W source(Index k) const {
    const ExpertId e = token_.expert[k];
    return e == none ? W(0) : source_of<W>(config_, tensors_, token_, e);
  }

  const WeightConfig& config_;
  const WeightTensors<W>& tensors_;
  const TokenGradient<W>& token_;
  W max_ = kernels::minus_infinity<W>(), sum_ = W(1);
};

/// Adds to dlogits and dprobs what the gradient of a token's weights makes of them.
template <Real W>
void add_weight_gradient(const WeightConfig& config, const TokenGradient<W>& token,
                         const std::type_identity_t<WeightTensors<W>>& tensors = {}) {
  if (config.source == WeightSource::one) {
    return;
  }
  const W *weight = token.weight, *dweight = token.dweight;
  const bool softmax = config.source == WeightSource::softmax_of_chosen;
  const bool divides = !softmax && config.renormalises(token.top_k);
  const auto used = [&](Index k) { return token.expert[k] != none; };
  const auto slope = [&](Index k) {
    return tensors.expert_scale == nullptr ? dweight[k]
                                           : dweight[k] * tensors.scale_of(token.expert[k]);
  };
  // mean = sum_k w_k dw_k of the weights before the scales: both the softmax over the chosen and
  // the division by the sum take it off.
  W mean(0);
  for (Index k = 0; (softmax || divides) && k < token.top_k; ++k) {
    mean += used(k) ? dweight[k] * weight[k] : W(0);
  }
  if (softmax) {
    const auto add = [&](const auto& weight_of) {
      for (Index k = 0; k < token.top_k; ++k) {
        if (used(k)) {
          token.dlogits[token.expert[k]] += weight_of(k) * (slope(k) - mean / W(config.scale));
        }
      }
    };
    return tensors.expert_scale == nullptr ? add([&](Index k) { return weight[k]; })
                                           : add(UnscaledWeights<W>(config, tensors, token));
  }
  const Divisor<W> sum(config, divides ? token.top_k : 0, [&](Index k) {
    return used(k) ? source_of<W>(config, tensors, token, token.expert[k]) : W(0);
  });
  mean = sum.of_epsilon ? W(0) : mean;
  for (Index k = 0; k < token.top_k; ++k) {
    if (used(k)) {
      const W of_sum = W(config.scale) * slope(k);
      token.dprobs[token.expert[k]] += divides ? (of_sum - mean) / sum.value : of_sum;
    }
  }
}

/// dscale (E) or (1) += the gradient of the scales of the experts, from that of a token's weights.
template <Real W>
void add_expert_scale_gradient(const WeightConfig& config, const TokenGradient<W>& token,
                               const WeightTensors<W>& tensors, W* dscale) {
  const UnscaledWeights<W> unscaled(config, tensors, token);
  for (Index k = 0; k < token.top_k; ++k) {
    if (token.expert[k] != none) {
      dscale[tensors.one_scale ? 0 : token.expert[k]] += token.dweight[k] * unscaled(k);
    }
  }
}

/// FLOPs of a token, by the rule of cost.hpp.
constexpr Index weight_flops(const WeightConfig& config, Index top_k) {
  const bool softmax = config.source == WeightSource::softmax_of_chosen;
  const Index source = config.source == WeightSource::biased_score ? 1 : 0;
  const Index scales = config.expert_scale == ExpertScale::off ? 1 : 2;
  return (source + scales + (softmax ? 4 : config.renormalises(top_k) ? 2 : 0)) * top_k;
}
constexpr Index weight_gradient_flops(const WeightConfig& config, Index top_k) {
  const bool softmax = config.source == WeightSource::softmax_of_chosen;
  const bool divides = !softmax && config.renormalises(top_k);
  const bool scaled = config.expert_scale != ExpertScale::off;
  const Index source = config.source == WeightSource::biased_score ? 1 : 0;
  Index flops = 0;
  if (config.source != WeightSource::one) {
    flops += (softmax ? 6 : divides ? 7 + source : 2) + (scaled ? (softmax ? 8 : 1) : 0);
  }
  if (is_learned(config.expert_scale)) {
    flops += softmax ? 9 : 4 + source + (divides ? 1 + source : 0);
  }
  return flops * top_k;
}

}  // namespace moe::inline MOE_INSTRUCTION_SET
