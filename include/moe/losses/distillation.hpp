// SPDX-License-Identifier: Apache-2.0
// What a layer learns from another: to give its outputs, and to choose as it does.
#pragma once

#include <algorithm>
#include <cmath>
#include <span>
#include <vector>

#include "../kernels/convert.hpp"
#include "../kernels/softmax.hpp"
#include "balance.hpp"

namespace moe::inline MOE_INSTRUCTION_SET {

/// A loss of outputs and its gradient; it keeps its memory from call to call.
template <Real T>
struct OutputLoss {
  Wide<T> value{0};
  GrowingMatrix<T> gradient = {};         ///< (N, D) by the student's
  std::vector<detail::TokenSum<T>> term;  ///< (N) what each token adds to the value
};

/// The mean over tokens and columns of (student - teacher)^2 (Jiao et al. 2020, TinyBERT, of hidden
/// states). What the mask leaves out counts in nothing. Throws std::invalid_argument unless both
/// are of one shape, and the mask fits.
template <Real T>
void output_distillation_loss(ConstMatrixRef<T> student, ConstMatrixRef<T> teacher, TokenMask mask,
                              OutputLoss<T>& loss, int num_threads = 0) {
  using W = Wide<T>;
  using Sum = detail::TokenSum<T>;
  const Index num_tokens = student.rows(), width = student.cols();
  detail::check_shape(teacher, num_tokens, width, "output_distillation_loss: teacher");
  detail::throw_unless(mask.empty() || std::ssize(mask) == num_tokens,
                       "output_distillation_loss: the mask has ", mask.size(),
                       " elements, expected ", num_tokens);
  const auto counts = [&](Index t) {
    return mask.empty() || mask[static_cast<std::size_t>(t)] != 0;
  };
  Index tokens = 0;
  for (Index t = 0; t < num_tokens; ++t) {
    tokens += counts(t) ? 1 : 0;
  }
  const double elements = static_cast<double>((std::max)(tokens, Index{1})) *
                          static_cast<double>((std::max)(width, Index{1}));
  const W share = W(1.0 / elements);
  const int threads = detail::num_threads(num_threads, 4.0 * static_cast<double>(student.size()));
  loss.gradient.resize(num_tokens, width);
  loss.term.assign(static_cast<std::size_t>(num_tokens), Sum(0));
  detail::for_rows(num_tokens, threads, [&](Index t) {
    for (Index d = 0; d < width; ++d) {
      const W off = counts(t)
                        ? kernels::convert<W>(student(t, d)) - kernels::convert<W>(teacher(t, d))
                        : W(0);
      loss.term[static_cast<std::size_t>(t)] += static_cast<Sum>(off * off);
      loss.gradient(t, d) = kernels::convert<T>(W(2) * share * off);
    }
  });
  Sum sum(0);
  for (const Sum& term : loss.term) {
    sum += term;
  }
  loss.value = static_cast<W>(sum * Sum(1.0 / elements));
}
template <Real T>
OutputLoss<T> output_distillation_loss(const Matrix<T>& student, const Matrix<T>& teacher,
                                       TokenMask mask = {}, int num_threads = 0) {
  OutputLoss<T> loss;
  output_distillation_loss<T>(student, teacher, mask, loss, num_threads);
  return loss;
}

/// What a teacher's probabilities are to a student whose expert g stands for its experts e with
/// group[e] == g: their sums, in to (N, groups). Throws std::invalid_argument unless every expert
/// of the table has a group of [0, num_groups).
template <Real T>
void group_probabilities(const RoutingTable<T>& teacher, std::span<const ExpertId> group,
                         Index num_groups, GrowingMatrix<T>& to) {
  const Index num_experts = detail::check_experts(teacher);
  detail::throw_unless(std::ssize(group) == num_experts, "group_probabilities: there are ",
                       group.size(), " groups, expected one for each of ", num_experts, " experts");
  for (const ExpertId g : group) {
    detail::throw_unless(g >= 0 && g < num_groups, "group_probabilities: group ", g,
                         ", expected in [0, ", num_groups, ")");
  }
  to.resize(teacher.num_tokens(), num_groups);
  to.setZero();
  for (Index t = 0; t < teacher.num_tokens(); ++t) {
    for (Index e = 0; e < num_experts; ++e) {
      to(t, group[static_cast<std::size_t>(e)]) += teacher.probs(t, e);
    }
  }
}

/// The mean over tokens of the Kullback-Leibler divergence of softmax(logits) from the teacher's
/// probabilities (N, E) (Hinton et al. 2015), which are divided by their sum: 0 where both agree.
/// Masked experts count in neither; nor does a token whose teacher has none. The gradient is that
/// of the logits. Throws std::invalid_argument on another shape, or if the table has no logits.
template <Real T>
void router_distillation_loss(const RoutingTable<T>& table, const GrowingMatrix<T>& teacher,
                              TokenMask mask, RoutingLoss<T>& loss, int num_threads = 0) {
  using std::log;
  detail::check_shape(teacher, table.num_tokens(), table.logits.cols(),
                      "router_distillation_loss: teacher");
  const detail::LogitLoss<T> over(table, mask, loss, num_threads, "router_distillation_loss");
  const Index num_experts = over.num_experts;
  const T least = detail::least_score_sum<T>(num_experts);
  detail::for_rows(table.num_tokens(), over.threads, [&](Index t) {
    if (!over.counted(t)) {
      return;
    }
    const T* logits = &table.logits.coeffRef(t, 0);
    const auto is_masked = [&](Index e) { return logits[e] < Eigen::NumTraits<T>::lowest(); };
    T sum(0);
    for (Index e = 0; e < num_experts; ++e) {
      sum += is_masked(e) ? T(0) : teacher(t, e);
    }
    if (sum < least) {
      return;
    }
    const T all = kernels::log_sum_exp(logits, num_experts);
    kernels::softmax(logits, num_experts, &loss.gradient.logits.coeffRef(t, 0));
    T& term = over.term[static_cast<std::size_t>(t)];
    for (Index e = 0; e < num_experts; ++e) {
      T& gradient = loss.gradient.logits(t, e);
      if (is_masked(e)) {
        gradient = T(0);
        continue;
      }
      const T wanted = teacher(t, e) / sum;
      gradient = over.share * (gradient - wanted);
      if (!(wanted <= T(0))) {  // NaN is not left out
        term += over.share * wanted * (log(wanted) - (logits[e] - all));
      }
    }
  });
  loss.value = detail::sum_of_terms(over.term, over.counted);
}
template <Real T>
RoutingLoss<T> router_distillation_loss(const RoutingTable<T>& table,
                                        const GrowingMatrix<T>& teacher, TokenMask mask = {},
                                        int num_threads = 0) {
  RoutingLoss<T> loss;
  router_distillation_loss(table, teacher, mask, loss, num_threads);
  return loss;
}

}  // namespace moe::inline MOE_INSTRUCTION_SET
