// SPDX-License-Identifier: Apache-2.0
// Product keys and experts of rank one in plain loops, in double: every one of the n^2 sums is made
// and put in order.
#pragma once

#include <algorithm>
#include <vector>

#include "../layers/product_key_layer.hpp"
#include "router.hpp"

namespace moe::inline MOE_INSTRUCTION_SET::reference {

/// The choices of one token of the logits of its two halves (n each).
inline std::vector<Choice> product_keys(const Row& first, const Row& second, Index top_k) {
  Row sums;
  std::vector<Index> order;
  for (const double a : first) {
    for (const double b : second) {
      order.push_back(static_cast<Index>(sums.size()));
      sums.push_back(a + b);
    }
  }
  const auto sum_of = [&](Index e) { return sums[static_cast<std::size_t>(e)]; };
  std::stable_sort(order.begin(), order.end(),
                   [&](Index a, Index b) { return is_before(sum_of(a), sum_of(b)); });
  order.resize(static_cast<std::size_t>(top_k));
  Row chosen;
  for (const Index e : order) {
    chosen.push_back(sum_of(e));
  }
  const Row weight = softmax(chosen);
  std::vector<Choice> choices;
  for (std::size_t k = 0; k < order.size(); ++k) {
    choices.push_back({order[k], weight[k]});
  }
  return choices;
}

/// Those of a batch of logits, a row (2n) for each token.
inline Routing product_keys(const std::vector<Row>& logits, const ProductKeyConfig& config) {
  Row flat;  // the memory of the rows
  for (const Row& row : logits) {
    flat.insert(flat.end(), row.begin(), row.end());
  }
  const auto num_keys = static_cast<std::ptrdiff_t>(config.num_keys);
  const auto num_tokens = static_cast<std::ptrdiff_t>(logits.size());
  const bool own = config.reading == KeyReading::per_token;
  Routing routing;
  for (std::ptrdiff_t t = 0; t < num_tokens; ++t) {
    const auto first = flat.begin() + (own ? 2 * t : t) * num_keys;
    const auto second = flat.begin() + (own ? 2 * t + 1 : num_tokens + t) * num_keys;
    routing.push_back(
        product_keys(Row(first, first + num_keys), Row(second, second + num_keys), config.top_k));
  }
  return routing;
}

/// y (N, D_out) of a layer.
template <Real T>
Matrix<double> product_key_layer(const ProductKeyLayer<T>& layer, const Matrix<T>& x,
                                 const Tokens& tokens = {}) {
  Matrix<double> y = Matrix<double>::Zero(x.rows(), layer.d_out());
  std::vector<Index> members;
  std::vector<Row> logits;
  for (Index t = 0; t < x.rows(); ++t) {
    if (!tokens.is_padding(t)) {
      members.push_back(t);
      logits.push_back(linear(layer.router().params().weight, {}, row_of(x, t)));
    }
  }
  const Routing routing = product_keys(logits, layer.router().config());
  const auto& p = layer.experts().params();
  for (std::size_t i = 0; i < members.size(); ++i) {
    const Row token = row_of(x, members[i]);
    Row sum(static_cast<std::size_t>(layer.d_out()), 0.0);
    if (layer.shared()) {
      sum = expert(layer.shared()->params(), layer.shared()->expert().config(), token);
    }
    for (const Choice& choice : routing[i]) {
      const Matrix<T> down = p.down.row(choice.expert);
      const double inner = linear(down, {}, token)[0];
      for (std::size_t col = 0; col < sum.size(); ++col) {
        sum[col] += choice.weight * activate(layer.experts().config(), inner) *
                    static_cast<double>(p.up(choice.expert, static_cast<Index>(col)));
      }
    }
    for (std::size_t col = 0; col < sum.size(); ++col) {
      y(members[i], static_cast<Index>(col)) = sum[col];
    }
  }
  return y;
}

}  // namespace moe::inline MOE_INSTRUCTION_SET::reference
