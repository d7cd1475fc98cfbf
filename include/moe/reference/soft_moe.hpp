// SPDX-License-Identifier: Apache-2.0
// Soft MoE in plain loops, in double: sequence by sequence, slot by slot.
#pragma once

#include <vector>

#include "../layers/soft_moe.hpp"
#include "gate.hpp"
#include "router.hpp"

namespace moe::inline MOE_INSTRUCTION_SET::reference {

/// The sum of weight[i] * rows[i], each of so many columns.
inline Row mean_of(const Row& weight, const std::vector<Row>& rows, Index cols) {
  Row mean(static_cast<std::size_t>(cols), 0.0);
  for (std::size_t i = 0; i < rows.size(); ++i) {
    for (std::size_t col = 0; col < mean.size(); ++col) {
      mean[col] += weight[i] * rows[i][col];
    }
  }
  return mean;
}

/// y (N, D_out) of a layer of our own experts. logits_of(token) gives those of its slots.
template <Real T, class Gate, class LogitsOf>
Matrix<double> soft_moe(const SoftMoELayer<T, Gate>& layer, const Matrix<T>& x,
                        const Tokens& tokens, LogitsOf&& logits_of) {
  Matrix<double> y = Matrix<double>::Zero(x.rows(), layer.d_out());
  for (Index b = 0; b < tokens.num_sequences(x.rows()); ++b) {
    const Sequence sequence = tokens.sequence(b, x.rows());
    std::vector<Index> members;
    std::vector<Row> inputs, logits, slots;
    for (Index t = sequence.begin; t < sequence.end; ++t) {
      if (!tokens.is_padding(t)) {
        members.push_back(t);
        inputs.push_back(row_of(x, t));
        logits.push_back(logits_of(inputs.back()));
      }
    }
    for (Index slot = 0; slot < layer.num_experts() * layer.slots(); ++slot) {
      Row of_slot;
      for (const Row& of_token : logits) {
        of_slot.push_back(of_token[static_cast<std::size_t>(slot)]);
      }
      const auto& e = layer.experts()[static_cast<std::size_t>(slot / layer.slots())];
      slots.push_back(
          expert(e.params(), e.config(), mean_of(softmax(of_slot), inputs, layer.d_in())));
    }
    for (std::size_t i = 0; i < members.size(); ++i) {
      const Row row = mean_of(softmax(logits[i]), slots, layer.d_out());
      for (Index col = 0; col < y.cols(); ++col) {
        y(members[i], col) = row[static_cast<std::size_t>(col)];
      }
    }
  }
  return y;
}

}  // namespace moe::inline MOE_INSTRUCTION_SET::reference
