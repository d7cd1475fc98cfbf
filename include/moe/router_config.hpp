// SPDX-License-Identifier: Apache-2.0
// What a router is: RouterConfig, a group for each step from a token to its experts and their
// weights. What published per-token routers differ in is data here.
#pragma once

#include <array>
#include <cmath>
#include <optional>

#include "detail/check.hpp"
#include "types.hpp"

namespace moe::inline MOE_INSTRUCTION_SET {

/// How a logit becomes the score that losses see as a probability: softmax over the experts,
/// sigmoid, sqrt(log(1 + exp(z))) (DeepSeek-V4), or the logit as it is, which may be negative.
enum class Score { softmax, sigmoid, sqrt_softplus, identity };
inline constexpr std::array all_scores{Score::softmax, Score::sigmoid, Score::sqrt_softplus,
                                       Score::identity};

/// Where the weight of a chosen expert comes from: its score; score + selection bias (the first
/// code of Kimi-Linear); a softmax over the logits of the chosen only (top-k before the softmax, as
/// in GPT-OSS and Shazeer 2017); or 1 for each (hard).
enum class WeightSource { score, biased_score, softmax_of_chosen, one };

/// How epsilon keeps the sum that divides weights from 0: sum + epsilon, or max(sum, epsilon),
/// which is only for weights that are never negative.
enum class EpsilonRule { added, least };

/// A factor for each expert on its weights: none, one that stays as it is, or one that is learned;
/// or one that is learned for all of them.
enum class ExpertScale { off, fixed, learned, learned_for_all };

/// Whether there is a factor that has a gradient.
constexpr bool is_learned(ExpertScale scale) {
  return scale == ExpertScale::learned || scale == ExpertScale::learned_for_all;
}

/// From a token to a logit for each expert: x W^T, plus what is asked for here.
struct LogitsConfig {
  /// Training: the router's input is multiplied by U[1 - jitter, 1 + jitter] (Fedus 2021).
  double input_jitter = 0.0;
  bool bias = false;
  /// Not 0: logits become softcap * tanh(logits / softcap) (Gemma 2 2024; Grok-1, Laguna), before
  /// noise. An infinite logit becomes NaN, not a plausible number.
  double softcap = 0.0;
  /// Training: logits += N(0, 1) * softplus(x W_noise) (Shazeer 2017).
  bool noisy = false;

  void validate() const {
    detail::throw_unless(input_jitter >= 0.0 && input_jitter < 1.0,
                         "RouterConfig: logits.input_jitter = ", input_jitter,
                         ", expected in [0, 1)");
    detail::throw_unless(std::isfinite(softcap) && softcap >= 0.0,
                         "RouterConfig: logits.softcap = ", softcap,
                         ", expected 0 or positive and finite");
  }
};

/// Which groups of experts a token may choose from: those of the best expert (DeepSeek-V2 2024), of
/// the largest sum of their two best (DeepSeek-V3 2024); or all, but equally many experts of each
/// (mixture of grouped experts, Pangu Pro 2025).
enum class GroupRule { best, sum_of_two_best, equal_quota };

/// What the experts of the other groups rank as. Both are published: as 0, one of them is chosen
/// rather than an expert whose score + bias is negative.
enum class OtherGroups { minus_infinity, zero };

/// num_groups groups of as many consecutive experts each. Ranks are score + bias, also where there
/// is no bias; masked experts do not count.
struct GroupLimit {
  Index num_groups = 1;
  GroupRule rule = GroupRule::sum_of_two_best;
  /// Groups of a token; not read for an equal quota.
  Index kept = 1;
  OtherGroups others = OtherGroups::minus_infinity;

  /// top_k is that of the router; a call that asks for more may not find as many in its groups.
  void validate(Index num_experts, Index top_k) const {
    detail::check_enum(rule, GroupRule::equal_quota, "RouterConfig: selection.groups.rule");
    detail::check_enum(others, OtherGroups::zero, "RouterConfig: selection.groups.others");
    detail::throw_unless(num_groups >= 1 && num_experts % num_groups == 0,
                         "RouterConfig: selection.groups.num_groups = ", num_groups,
                         ", expected to divide num_experts = ", num_experts);
    if (rule == GroupRule::equal_quota) {
      return check_quota(top_k, "top_k");
    }
    const Index size = num_experts / num_groups;
    detail::throw_unless(rule == GroupRule::best || size >= 2,
                         "RouterConfig: selection.groups.num_groups = ", num_groups,
                         " leaves one expert a group, expected two or more to add up");
    detail::throw_unless(kept >= 1 && kept <= num_groups,
                         "RouterConfig: selection.groups.kept = ", kept,
                         ", expected in [1, num_groups = ", num_groups, "]");
    detail::throw_unless(kept * size >= top_k, "RouterConfig: selection.groups.kept = ", kept,
                         " of ", size, " experts each, expected to hold top_k = ", top_k);
  }

  void check_quota(Index top_k, const char* name) const {
    detail::throw_unless(top_k % num_groups == 0, "RouterConfig: ", name, " = ", top_k,
                         ", expected a multiple of selection.groups.num_groups = ", num_groups);
  }
};

/// From the scores to the chosen experts.
struct SelectionConfig {
  /// The experts of the k largest score + bias (1, E) are chosen (Wang 2024, Auxiliary-Loss-Free
  /// Load Balancing; DeepSeek-V3 2024: e_score_correction_bias). The bias is not in the
  /// weights, unless their source says so, and has no gradient: whoever balances the load moves it.
  bool bias = false;
  /// Not set: any expert may be chosen.
  std::optional<GroupLimit> groups = std::nullopt;
  /// Not 0: the experts of a token are the row of its id in the router's table (vocabulary, k)
  /// (Roller 2021, Hash layers; DeepSeek-V4), without bias and groups.
  Index vocabulary = 0;
  /// So many of the top_k are the last experts, which every token takes: shared experts inside of
  /// the router, whose weights are renormalised together with the others' (Inkling). They are the
  /// last choices of a token, have no bias, and are as any other expert to capacity and losses.
  Index always = 0;

  void validate() const {
    detail::throw_unless(vocabulary >= 0, "RouterConfig: selection.vocabulary = ", vocabulary,
                         ", expected at least 0");
    detail::throw_unless(vocabulary == 0 || (!bias && !groups),
                         "RouterConfig: selection.vocabulary = ", vocabulary,
                         " with bias or groups, which a table does not need, expected neither");
    detail::throw_unless(always >= 0 && (always == 0 || (vocabulary == 0 && !groups)),
                         "RouterConfig: selection.always = ", always,
                         ", expected 0, or at least 1 without a table and groups");
  }
};

/// From the chosen experts to their weights.
struct WeightConfig {
  WeightSource source = WeightSource::score;
  /// Divides the weights of a token by their sum, by the rule of epsilon. Not set: for top_k > 1
  /// only. A single weight divided by itself is always 1, and a router of such weights learns from
  /// losses alone.
  std::optional<bool> renormalise = std::nullopt;
  /// 1e-20 as in DeepSeek-V3: scores that all underflow make weights of 0. With 0 (Mixtral) they
  /// make NaN. 1e-6 in LFM2; as the least sum 1e-12 in ERNIE 4.5, and 2^-14 in ggml.
  double epsilon = 1e-20;
  EpsilonRule epsilon_rule = EpsilonRule::added;
  /// Multiplies the weights (routed_scaling_factor of DeepSeek).
  double scale = 1.0;
  /// Multiplies them, too: expert_scale (1, E) (Gemma 4: per_expert_scale), or (1, 1) for all
  /// (Inkling: global_scale).
  ExpertScale expert_scale = ExpertScale::off;

  /// renormalise, or what it is where it is not set.
  constexpr bool renormalises(Index top_k) const { return renormalise.value_or(top_k > 1); }

  void validate() const {
    detail::check_enum(source, WeightSource::one, "RouterConfig: weight.source");
    detail::check_enum(epsilon_rule, EpsilonRule::least, "RouterConfig: weight.epsilon_rule");
    detail::check_enum(expert_scale, ExpertScale::learned_for_all,
                       "RouterConfig: weight.expert_scale");
    detail::throw_unless(std::isfinite(scale) && scale > 0.0,
                         "RouterConfig: weight.scale = ", scale, ", expected positive and finite");
    detail::throw_unless(std::isfinite(epsilon) && epsilon >= 0.0,
                         "RouterConfig: weight.epsilon = ", epsilon,
                         ", expected 0 or positive and finite");
  }
  /// The same, for a rule without parameters, which has neither biases nor scales of experts.
  void validate_without_tensors(const char* rule) const {
    validate();
    detail::throw_unless(
        source != WeightSource::biased_score && expert_scale == ExpertScale::off, rule,
        ": weight takes a bias or a scale of experts, expected none: it has no parameters");
  }
  /// Throws, in the name of `config`, if weights of such scores may add up to less than 0: the
  /// least sum would make epsilon of that.
  void validate_sum(const char* config, Score score) const {
    const bool negative = source == WeightSource::biased_score ||
                          (source == WeightSource::score && score == Score::identity);
    detail::throw_unless(
        epsilon_rule != EpsilonRule::least || !renormalise.value_or(true) || !negative, config,
        ": weight.epsilon_rule = least with weights that may be negative, of score = identity or "
        "weight.source = biased_score, expected added");
  }
};

/// The router, a part for each step, in the order in which it works. Without a selection bias and
/// groups the largest logits are chosen, which is the order of the scores without their rounding.
struct RouterConfig {
  LogitsConfig logits = {};
  Score score = Score::softmax;
  SelectionConfig selection = {};
  WeightConfig weight = {};

  void validate() const {
    logits.validate();
    detail::check_enum(score, all_scores.back(), "RouterConfig: score");
    selection.validate();
    weight.validate();
    weight.validate_sum("RouterConfig", score);
    detail::throw_unless(
        weight.source != WeightSource::biased_score || selection.bias,
        "RouterConfig: weight.source = biased_score without selection.bias, expected a bias");
    detail::throw_unless(weight.source != WeightSource::biased_score || selection.always == 0,
                         "RouterConfig: weight.source = biased_score with selection.always = ",
                         selection.always, ", which have no bias, expected 0");
  }
  /// The same, and that it fits so many experts.
  void validate(Index num_experts, Index top_k) const {
    validate();
    detail::throw_unless(selection.always < top_k,
                         "RouterConfig: selection.always = ", selection.always,
                         ", expected less than top_k = ", top_k);
    if (selection.groups) {
      selection.groups->validate(num_experts, top_k);
    }
  }
};

}  // namespace moe::inline MOE_INSTRUCTION_SET
