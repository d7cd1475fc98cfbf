// SPDX-License-Identifier: Apache-2.0
// A step of routing: from a token's logits to the scores of all experts, and the gradient of the
// scores back to the logits.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>

#include "../config.hpp"
#include "../detail/check.hpp"
#include "../kernels/finite.hpp"
#include "../kernels/softmax.hpp"
#include "gated_table.hpp"

namespace moe::inline MOE_INSTRUCTION_SET {

struct SoftmaxScore {
  static constexpr bool sums_to_one = true;
  static constexpr Index flops = 4, gradient_flops = 5;  ///< of an expert, by the rule of cost.hpp

  /// prob (E) = the scores of the logits (E).
  template <class W>
  static void write(const W* logit, Index num_experts, W* prob) {
    kernels::softmax(logit, num_experts, prob);
  }
  /// Makes the gradient of the scores that of the logits.
  template <class W>
  static void backward(const W*, const W* prob, Index num_experts, W* dprob) {
    kernels::softmax_backward(prob, num_experts, dprob);
  }
};

struct SigmoidScore {
  static constexpr bool sums_to_one = false;
  static constexpr Index flops = 3, gradient_flops = 4;

  template <class W>
  static void write(const W* logit, Index num_experts, W* prob) {
    kernels::sigmoid(logit, num_experts, prob);
  }
  template <class W>
  static void backward(const W*, const W* prob, Index num_experts, W* dprob) {
    kernels::sigmoid_backward(prob, num_experts, dprob);
  }
};

struct SqrtSoftplusScore {
  static constexpr bool sums_to_one = false;
  static constexpr Index flops = 4, gradient_flops = 7;

  template <class W>
  static void write(const W* logit, Index num_experts, W* prob) {
    using std::abs, std::exp, std::log1p, std::sqrt;
    for (Index e = 0; e < num_experts; ++e) {
      const W positive = logit[e] > W(0) ? logit[e] : W(0);
      prob[e] = sqrt(positive + log1p(exp(-abs(logit[e]))));
    }
  }
  /// ds/dz = sigmoid(z) / (2 s), which goes to 0 with s: as s / 2 where s does not underflow.
  template <class W>
  static void backward(const W* logit, const W* prob, Index num_experts, W* dprob) {
    for (Index e = 0; e < num_experts; ++e) {
      const W& s = prob[e];
      dprob[e] *= s > W(0) ? kernels::sigmoid(logit[e]) / (W(2) * s) : s;
    }
  }
};

struct IdentityScore {
  static constexpr bool sums_to_one = false;
  static constexpr Index flops = 0, gradient_flops = 1;

  template <class W>
  static void write(const W* logit, Index num_experts, W* prob) {
    std::copy_n(logit, num_experts, prob);
  }
  template <class W>
  static void backward(const W*, const W*, Index, W*) {}
};

/// Calls f(Kind{}) with the type of the score.
template <class F>
constexpr decltype(auto) with_score(Score score, F&& f) {
  switch (score) {
    case Score::softmax:
      return f(SoftmaxScore{});
    case Score::sigmoid:
      return f(SigmoidScore{});
    case Score::sqrt_softplus:
      return f(SqrtSoftplusScore{});
    case Score::identity:
      return f(IdentityScore{});
  }
  detail::fail("Score: value = ", static_cast<int>(score), ", expected one of the enum");
}

/// Whether the scores of a token sum to 1.
constexpr bool sums_to_one(Score score) {
  return with_score(score, [](auto kind) { return kind.sums_to_one; });
}

/// Of a token whose scores are of one logit each: where an expert that it may have has an infinite
/// logit, a finite score becomes NaN.
template <Real W>
void spoil_scores_of_infinity(const TokenRoute<W>& token) {
  bool any = false;
  for (Index e = 0; e < token.num_experts; ++e) {
    any |= !kernels::is_finite(token.logits[e]);
  }
  for (Index e = 0; any && e < token.num_experts; ++e) {
    if (!kernels::is_finite(token.logits[e]) && kernels::is_finite(token.probs[e]) &&
        (token.allowed == nullptr || token.allowed[e] != 0)) {
      token.probs[e] = W(std::numeric_limits<double>::quiet_NaN());
    }
  }
}

/// probs = the scores. Exactly 0 for a masked expert, whose logit is -inf, unless the softmax of
/// the row is NaN or the score is the logit. Of another infinite logit a sigmoid or a square root
/// is no plausible number, and a softmax none of +inf.
template <Real W>
void write_scores(Score score, const TokenRoute<W>& token) {
  with_score(score, [&](auto kind) {
    kind.write(token.logits, token.num_experts, token.probs);
    if constexpr (!kind.sums_to_one) {
      spoil_scores_of_infinity(token);
    }
  });
}

/// dlogits += what dprobs makes of it; dprobs is used up.
template <Real W>
void add_score_gradient(Score score, const TokenGradient<W>& token) {
  with_score(score, [&](auto kind) {
    kind.backward(token.logits, token.probs, token.num_experts, token.dprobs);
  });
  for (Index e = 0; e < token.num_experts; ++e) {
    token.dlogits[e] += token.dprobs[e];
  }
}

/// FLOPs of a token.
constexpr Index score_flops(Score score, Index num_experts) {
  return num_experts * with_score(score, [](auto kind) { return kind.flops; });
}
constexpr Index score_gradient_flops(Score score, Index num_experts) {
  return num_experts * with_score(score, [](auto kind) { return kind.gradient_flops; });
}

/// The scores of so many tokens as multiply-adds, for the choice of threads: a score takes as long
/// as some eight.
inline double score_work(Index rows, Index num_experts) {
  return 8.0 * static_cast<double>(rows) * static_cast<double>(num_experts);
}

}  // namespace moe::inline MOE_INSTRUCTION_SET
