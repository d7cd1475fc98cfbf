// SPDX-License-Identifier: Apache-2.0
// Mixture-of-Depths in plain loops, in double: sequence by sequence, the tokens in a queue.
#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

#include "../routing/top_tokens.hpp"
#include "router.hpp"

namespace moe::inline MOE_INSTRUCTION_SET::reference {

/// y (N, D) = x, to which logit_of(token) times the token's row of block(tokens of a sequence that
/// are taken, in their order) is added. Causal: who is above the threshold is taken, or NaN.
template <class M, class LogitOf, class Block>
Matrix<double> depth(const M& x, const TopTokensConfig& config, bool causal, const Tokens& tokens,
                     LogitOf&& logit_of, Block&& block) {
  Matrix<double> y = Matrix<double>::Zero(x.rows(), x.cols());
  for (Index b = 0; b < tokens.num_sequences(x.rows()); ++b) {
    const Sequence sequence = tokens.sequence(b, x.rows());
    std::vector<Index> queue;
    for (Index t = sequence.begin; t < sequence.end; ++t) {
      if (!tokens.is_padding(t)) {
        queue.push_back(t);
        y.row(t) = x.row(t).template cast<double>();
      }
    }
    const auto logit = [&](Index t) -> double {
      const double z = logit_of(row_of(x, t));
      return causal && std::isinf(z) ? std::nan("") : z;
    };
    if (causal) {
      std::erase_if(queue, [&](Index t) { return logit(t) <= config.threshold; });
    } else {
      std::stable_sort(queue.begin(), queue.end(),
                       [&](Index s, Index t) { return is_before(logit(s), logit(t)); });
      queue.resize(
          static_cast<std::size_t>(std::ceil(config.capacity * static_cast<double>(queue.size()))));
      std::sort(queue.begin(), queue.end());
    }
    std::vector<Row> inputs;
    for (const Index t : queue) {
      inputs.push_back(row_of(x, t));
    }
    const std::vector<Row> outputs = block(inputs);
    for (std::size_t i = 0; i < queue.size(); ++i) {
      for (Index col = 0; col < y.cols(); ++col) {
        y(queue[i], col) += logit(queue[i]) * outputs[i][static_cast<std::size_t>(col)];
      }
    }
  }
  return y;
}

}  // namespace moe::inline MOE_INSTRUCTION_SET::reference
