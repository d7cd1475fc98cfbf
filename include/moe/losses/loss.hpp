// SPDX-License-Identifier: Apache-2.0
// Auxiliary losses: pure functions of a routing table, each with its value and its gradient. They
// see the router's choices before any are dropped over capacity. No gradient flows through counts.
//
// A token mask (N, 1 = counts, 0 = padding) leaves tokens out of every mean; empty: all count.
// Over no tokens at all a loss is 0. In comments: f_e is the fraction of the choices that fell on
// expert e, P_e the mean probability of e.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <numbers>
#include <span>
#include <vector>

#include "../detail/check.hpp"
#include "../kernels/softmax.hpp"
#include "../kernels/topk.hpp"
#include "../routing_table.hpp"

namespace moe::inline MOE_INSTRUCTION_SET {

using TokenMask = std::span<const std::uint8_t>;

/// A loss and its gradient with respect to the table. Losses are scaled and added like numbers:
/// auto aux = 0.01f * load_balancing_loss(table) + 0.001f * z_loss(table);
template <Real T>
struct RoutingLoss {
  T value{0};
  RoutingGradient<T> gradient;

  RoutingLoss& operator*=(T factor) {
    value *= factor;
    for (Matrix<T>* m : tensors(*this)) {
      *m *= factor;
    }
    return *this;
  }
  /// Throws std::invalid_argument if the other is of a table with another shape.
  RoutingLoss& operator+=(const RoutingLoss& other) {
    const auto from = tensors(other);
    const auto to = tensors(*this);
    for (std::size_t i = 0; i < to.size(); ++i) {
      if (to[i]->size() > 0 && from[i]->size() > 0) {
        detail::check_shape(*from[i], to[i]->rows(), to[i]->cols(), "RoutingLoss: other gradient");
      }
    }
    value += other.value;
    for (std::size_t i = 0; i < to.size(); ++i) {
      if (to[i]->size() == 0) {
        *to[i] = *from[i];
      } else if (from[i]->size() > 0) {
        *to[i] += *from[i];
      }
    }
    return *this;
  }
  friend RoutingLoss operator*(T factor, RoutingLoss loss) { return loss *= factor; }
  friend RoutingLoss operator+(RoutingLoss a, const RoutingLoss& b) { return a += b; }

 private:
  template <class Loss>
  static auto tensors(Loss& loss) {
    auto& g = loss.gradient;
    return std::array{&g.weight, &g.probs, &g.logits, &g.noise_scale};
  }
};

namespace detail {

/// The tokens that count.
template <Real T>
class CountedTokens {
 public:
  CountedTokens(const RoutingTable<T>& table, TokenMask mask) : mask_(mask) {
    check(mask.empty() || static_cast<Index>(mask.size()) == table.num_tokens(),
          "loss: token mask has ", mask.size(), " elements, expected ", table.num_tokens());
    for (Index t = 0; t < table.num_tokens(); ++t) {
      count_ += (*this)(t) ? 1 : 0;
    }
  }
  bool operator()(Index token) const {
    return mask_.empty() || mask_[static_cast<std::size_t>(token)] != 0;
  }
  Index count() const { return count_; }

 private:
  TokenMask mask_;
  Index count_ = 0;
};

/// E, from the table's probs (N, E). Throws std::invalid_argument if they do not fit its experts.
template <Real T>
Index check_experts(const RoutingTable<T>& table) {
  const Index num_experts = table.probs.cols();
  check_shape(table.probs, table.num_tokens(), num_experts, "loss: probs");
  for (Index t = 0; t < table.num_tokens(); ++t) {
    for (Index k = 0; k < table.top_k(); ++k) {
      const ExpertId e = table.expert(t, k);
      check(e == none || (e >= 0 && e < num_experts), "loss: expert of token ", t, " is ", e,
            ", expected in [0, num_experts = ", num_experts, ")");
    }
  }
  return num_experts;
}

/// Choices per expert, of the first `choices` choices of each counted token.
template <Real T>
std::vector<T> count_choices(const RoutingTable<T>& table, const CountedTokens<T>& counted,
                             Index choices) {
  std::vector<T> count(static_cast<std::size_t>(check_experts(table)), T(0));
  for (Index t = 0; t < table.num_tokens(); ++t) {
    for (Index k = 0; counted(t) && k < choices; ++k) {
      if (table.expert(t, k) != none) {
        count[static_cast<std::size_t>(table.expert(t, k))] += T(1);
      }
    }
  }
  return count;
}

/// factor * sum_e count_e * sum_t probs_te: every balancing loss with a count and a mean.
template <Real T>
RoutingLoss<T> balance(const RoutingTable<T>& table, TokenMask mask, Index choices,
                       const auto& factor_of) {
  const CountedTokens<T> counted(table, mask);
  const std::vector<T> count = count_choices(table, counted, choices);
  RoutingLoss<T> loss;
  loss.gradient.probs.setZero(table.probs.rows(), table.probs.cols());
  if (counted.count() == 0) {
    return loss;
  }
  const T factor = factor_of(T(static_cast<double>(counted.count())));
  for (Index t = 0; t < table.num_tokens(); ++t) {
    T share(0);  // of the token: N * E terms in one sum would be lost in its rounding
    for (Index e = 0; counted(t) && e < table.probs.cols(); ++e) {
      const T slope = factor * count[static_cast<std::size_t>(e)];
      share += slope * table.probs(t, e);
      loss.gradient.probs(t, e) = slope;
    }
    loss.value += share;
  }
  return loss;
}

/// The squared coefficient of variation Var / mean^2 of x, with the sample variance, and its
/// gradient in dx. 0 for one element or a mean of 0.
template <Real T>
T squared_variation(const std::vector<T>& x, std::vector<T>& dx) {
  const T size = T(static_cast<double>(x.size()));
  T mean(0), variance(0);
  dx.assign(x.size(), T(0));
  for (const T& value : x) {
    mean += value / size;
  }
  if (x.size() < 2 || mean == T(0)) {
    return T(0);
  }
  for (const T& value : x) {
    variance += (value - mean) * (value - mean) / (size - T(1));
  }
  for (std::size_t i = 0; i < x.size(); ++i) {
    dx[i] = T(2) * (x[i] - mean) / ((size - T(1)) * mean * mean) -
            T(2) * variance / (size * mean * mean * mean);
  }
  return variance / (mean * mean);
}

}  // namespace detail

/// E * sum_e f_e P_e (Fedus 2021, Switch Transformers, eq. 4, for any top-k): 1 when balanced.
template <Real T>
RoutingLoss<T> load_balancing_loss(const RoutingTable<T>& table, TokenMask mask = {}) {
  const T experts = T(static_cast<double>(table.probs.cols()));
  const T choices = T(static_cast<double>(table.top_k()));
  return detail::balance(table, mask, table.top_k(),
                         [&](const T& tokens) { return experts / (choices * tokens * tokens); });
}

/// load_balancing_loss_func of Hugging Face transformers for one layer: the same sum over each of
/// the k choices, K when balanced.
template <Real T>
RoutingLoss<T> hugging_face_load_balancing_loss(const RoutingTable<T>& table, TokenMask mask = {}) {
  const T experts = T(static_cast<double>(table.probs.cols()));
  return detail::balance(table, mask, table.top_k(),
                         [&](const T& tokens) { return experts / (tokens * tokens); });
}

/// (1 / E) * sum_e (c_e / N) P_e with c_e counting first choices only (Lepikhin 2020, GShard,
/// algorithm 1): 1 / E^2 when balanced.
template <Real T>
RoutingLoss<T> gshard_loss(const RoutingTable<T>& table, TokenMask mask = {}) {
  const T experts = T(static_cast<double>(table.probs.cols()));
  return detail::balance(table, mask, 1,
                         [&](const T& tokens) { return T(1) / (experts * tokens * tokens); });
}

/// The squared coefficient of variation of the experts' summed weights (Shazeer 2017, eq. 6, 7).
template <Real T>
RoutingLoss<T> importance_loss(const RoutingTable<T>& table, TokenMask mask = {}) {
  const detail::CountedTokens<T> counted(table, mask);
  detail::check_shape(table.weight, table.num_tokens(), table.top_k(), "loss: weight");
  std::vector<T> importance(static_cast<std::size_t>(detail::check_experts(table)), T(0)), slope;
  const auto for_each_choice = [&](const auto& body) {
    for (Index t = 0; t < table.num_tokens(); ++t) {
      for (Index k = 0; counted(t) && k < table.top_k(); ++k) {
        if (table.expert(t, k) != none) {
          body(t, k, static_cast<std::size_t>(table.expert(t, k)));
        }
      }
    }
  };
  for_each_choice([&](Index t, Index k, std::size_t e) { importance[e] += table.weight(t, k); });
  RoutingLoss<T> loss;
  loss.gradient.weight.setZero(table.num_tokens(), table.top_k());
  loss.value = detail::squared_variation(importance, slope);
  for_each_choice([&](Index t, Index k, std::size_t e) { loss.gradient.weight(t, k) = slope[e]; });
  return loss;
}

namespace detail {

/// body(t, e, rival, z) for each logit of a counted token that is not masked: z = (clean -
/// threshold) / scale, where the threshold is the logit of the rival, or e is chosen whatever its
/// noise: the rival is `none` and z infinite.
template <Real T, class Body>
void for_each_margin(const RoutingTable<T>& table, const CountedTokens<T>& counted, Body&& body) {
  const T masked = kernels::minus_infinity<T>();
  const Index num_experts = table.logits.cols(), top_k = table.top_k();
  std::vector<ExpertId> best(static_cast<std::size_t>(top_k + 1));
  for (Index t = 0; top_k < num_experts && t < table.num_tokens(); ++t) {
    if (!counted(t)) {
      continue;
    }
    const T* logits = &table.logits.coeffRef(t, 0);
    kernels::top_k(logits, nullptr, num_experts, top_k + 1, best.data());
    const ExpertId last = best[static_cast<std::size_t>(top_k - 1)];
    for (Index e = 0; e < num_experts; ++e) {
      if (logits[e] == masked) {
        continue;  // its load is 0
      }
      const bool chosen = e == last || kernels::ranks_above(logits[e], logits[last]) ||
                          (e < last && !kernels::ranks_above(logits[last], logits[e]));
      const Index rival = best[static_cast<std::size_t>(chosen ? top_k : top_k - 1)];
      if (logits[rival] == masked) {
        body(t, e, none, T(-masked));
      } else {
        body(t, e, rival, T((table.clean_logits(t, e) - logits[rival]) / table.noise_scale(t, e)));
      }
    }
  }
}

}  // namespace detail

/// The squared coefficient of variation of the experts' expected loads (Shazeer 2017, eq. 8 to 11):
/// load_e = sum_t Phi((clean_te - threshold_te) / scale_te), the probability that e is chosen if
/// its own noise is drawn again; the threshold is the k-th largest noisy logit of the others.
/// Throws std::invalid_argument if the table was made without noise.
template <Real T>
RoutingLoss<T> load_loss(const RoutingTable<T>& table, TokenMask mask = {}) {
  using std::erfc, std::exp;
  const detail::CountedTokens<T> counted(table, mask);
  const Index num_tokens = table.num_tokens(), num_experts = table.logits.cols();
  detail::check_shape(table.logits, num_tokens, num_experts, "load_loss: logits");
  detail::check_shape(table.clean_logits, num_tokens, num_experts, "load_loss: clean_logits");
  detail::check_shape(table.noise_scale, num_tokens, num_experts, "load_loss: noise_scale");

  std::vector<T> load(static_cast<std::size_t>(num_experts), T(0)), slope;
  detail::for_each_margin(table, counted, [&](Index, Index e, Index, const T& z) {
    load[static_cast<std::size_t>(e)] += T(0.5) * erfc(z * T(-1.0 / std::numbers::sqrt2));
  });
  RoutingLoss<T> loss;
  loss.value = detail::squared_variation(load, slope);
  loss.gradient.logits.setZero(num_tokens, num_experts);
  loss.gradient.noise_scale.setZero(num_tokens, num_experts);
  detail::for_each_margin(table, counted, [&](Index t, Index e, Index rival, const T& z) {
    const T density = T(std::numbers::inv_sqrtpi / std::numbers::sqrt2) * exp(T(-0.5) * z * z);
    if (rival == none || density == T(0)) {
      return;  // also where the scale is 0
    }
    const T scale = table.noise_scale(t, e);
    const T dclean = slope[static_cast<std::size_t>(e)] * density / scale;
    // logits = clean + noise * scale: what flows to clean alone is taken back from the scale.
    const T noise = (table.logits(t, e) - table.clean_logits(t, e)) / scale;
    loss.gradient.logits(t, e) += dclean;
    loss.gradient.logits(t, rival) -= dclean;
    loss.gradient.noise_scale(t, e) -= dclean * (noise + z);
  });
  return loss;
}

/// The mean of log(sum_e exp(logit_e))^2 (Zoph 2022, ST-MoE, eq. 5).
template <Real T>
RoutingLoss<T> z_loss(const RoutingTable<T>& table, TokenMask mask = {}) {
  const detail::CountedTokens<T> counted(table, mask);
  const Index num_experts = table.logits.cols();
  detail::check_shape(table.logits, table.num_tokens(), num_experts, "z_loss: logits");
  RoutingLoss<T> loss;
  loss.gradient.logits.setZero(table.num_tokens(), num_experts);
  for (Index t = 0; t < table.num_tokens(); ++t) {
    const T* logits = &table.logits.coeffRef(t, 0);
    const T sum = kernels::log_sum_exp(logits, num_experts);
    if (!counted(t) || sum == kernels::minus_infinity<T>()) {
      continue;  // padding, or every expert masked
    }
    const T share = T(1.0 / static_cast<double>(counted.count()));
    loss.value += share * sum * sum;
    kernels::softmax(logits, num_experts, &loss.gradient.logits(t, 0));
    loss.gradient.logits.row(t) *= T(2) * share * sum;
  }
  return loss;
}

}  // namespace moe::inline MOE_INSTRUCTION_SET
