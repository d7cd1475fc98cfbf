// SPDX-License-Identifier: Apache-2.0
// ProductKeyRouter: very many experts, found by two keys each (Lample et al. 2019, Large Memory
// Layers with Product Keys; He 2024, Mixture of A Million Experts, one head of its PEER; the CDMoE
// of Doge). Expert i n + j of n^2 has the logit a_i + b_j: a token has n logits in each of two
// halves, and none for each expert is ever made.
//
// Looks at one token, and is causal, but for KeyReading::across_batch.
#pragma once

#include <algorithm>
#include <vector>

#include "../kernels/softmax.hpp"
#include "../kernels/topk.hpp"
#include "concepts.hpp"
#include "product_key_config.hpp"

namespace moe::inline MOE_INSTRUCTION_SET {

/// weight (2n, D). Weights of the experts are a softmax over the chosen. The table has experts and
/// weights, and the logits (N, 2n) of the keys; it has no probs (N, E), which losses of balance
/// would read. A logit that is NaN ranks below every number; equal sums go to the lowest expert,
/// but where rounding alone makes them equal one of larger logits may be taken. Masks, top_k and
/// experts of a call are refused. T is the scalar of the tokens.
template <Real T>
class ProductKeyRouter {
 public:
  using W = Wide<T>;
  using Params = LinearGateParams<W>;
  static constexpr bool leaves_out_padding = true;

  /// The sum of an expert's two logits.
  struct Candidate {
    W sum;
    ExpertId expert;
  };
  struct Worker {
    std::vector<ExpertId> key[2];  ///< the best of each half
    std::vector<Candidate> candidates;
  };
  struct Table : LinearGate<T>::Table {
    std::vector<Worker> worker;  ///< memory of each thread
  };

  /// Weights from N(0, 1 / d_model).
  ProductKeyRouter(Index d_model, const ProductKeyConfig& config, std::uint64_t seed)
      : config_(config), gate_(gate_of(d_model, config)), params_(gate_.initial_params(seed)) {}
  /// Takes ready parameters. Throws std::invalid_argument unless they have their shapes.
  ProductKeyRouter(Params params, const ProductKeyConfig& config)
      : config_(config), gate_(gate_of(params.weight.cols(), config)), params_(std::move(params)) {
    check_params({"Router"});
  }

  Index d_model() const { return gate_.d_model(); }
  Index num_experts() const { return config_.num_experts(); }
  Index top_k() const { return config_.top_k; }
  const ProductKeyConfig& config() const { return config_; }
  Params& params() { return params_; }
  const Params& params() const { return params_; }
  void check_params(const ParameterName& name) const {
    check_shapes(params_, gate_.shapes(), name);
  }
  double multiply_adds(Index rows) const {
    const Index others = 4 * config_.num_keys + 32 * config_.num_sums();
    return gate_.multiply_adds(rows) + static_cast<double>(rows) * static_cast<double>(others);
  }
  /// Of so many tokens.
  Flops forward_flops(Index tokens) const {
    return product_key_forward_flops(d_model(), config_, tokens);
  }
  Flops backward_flops(Index tokens) const {
    return product_key_backward_flops(d_model(), config_, tokens);
  }

  /// Throws std::invalid_argument if the call asks for what there is not.
  void check_call(const CallOptions& call, Index) const {
    detail::throw_unless(
        call.expert_mask == nullptr && call.experts == nullptr && !call.top_k,
        "ProductKeyRouter: the call sets expert_mask, experts or top_k, expected none");
  }
  /// Throws std::invalid_argument unless this very object wrote the table.
  void check_tape(const Table& table, const ParameterName& name) const {
    detail::check_own(table.owner.is(identity_), name,
                      "the table is of another router, expected this one's");
  }

  /// Writes the table for x (N, D). Throws std::invalid_argument if x, the parameters or the call
  /// do not fit.
  void route(ConstMatrixRef<T> x, const CallOptions& call, Table& table) const;

  /// dx (N, D) = and grads +=, from the gradients of the weights and of the logits of the keys. On
  /// return gradient.logits is the whole gradient of those. Throws std::invalid_argument on other
  /// shapes, a table of another router (also of a copy), or if dx overlaps x.
  void backward(ConstMatrixRef<T> x, const Table& table, RoutingGradient<W>& gradient,
                MatrixRef<T> dx, Params& grads) const;

 private:
  static LinearGate<T> gate_of(Index d_model, const ProductKeyConfig& config) {
    config.validate();
    return LinearGate<T>(d_model, 2 * config.num_keys, {});
  }

  /// Larger sums first, numbers before NaN, of equals the lowest expert.
  static bool is_before(const Candidate& a, const Candidate& b) {
    return kernels::ranks_above(a.sum, b.sum) ||
           (a.expert < b.expert && !kernels::ranks_above(b.sum, a.sum));
  }

  /// Where half 0 or 1 of a token stands, of the tokens without padding the number i: in which row
  /// of the batch, and from which column on. Every half of a row is read by exactly one token.
  struct Place {
    Index row, col;
  };
  Place place_of(Index i, Index half, const Table& table) const {
    const auto count = static_cast<Index>(table.order.size());
    const bool own = config_.reading == KeyReading::per_token;
    const Index place = own ? 2 * i + half : half * count + i;
    return {table.order[static_cast<std::size_t>(place / 2)], place % 2 * config_.num_keys};
  }

  void size_table(Index num_tokens, Table& table) const;
  void choose(Index i, Worker& worker, Table& table) const;
  void add_gradient(Index i, const Table& table, RoutingGradient<W>& gradient) const;

  ProductKeyConfig config_;
  LinearGate<T> gate_;
  Params params_;
  detail::Identity identity_;
};

template <Real T>
void ProductKeyRouter<T>::route(ConstMatrixRef<T> x, const CallOptions& call, Table& table) const {
  check_params({"Router"});
  detail::check_shape(x, x.rows(), d_model(), "Router: x");
  call.validate(x.rows(), num_experts());
  check_call(call, x.rows());
  const int threads = detail::num_threads(call.num_threads, multiply_adds(x.rows()));
  table.owner.clear();
  table.num_threads = threads;
  table.padding.assign(call.tokens.padding.begin(), call.tokens.padding.end());
  size_table(x.rows(), table);
  detail::with_team(threads, [&] {
    gate_.forward(params_, x, call, table);
    detail::parallel_for(static_cast<Index>(table.order.size()), threads, [&](Index i, int worker) {
      choose(i, table.worker[static_cast<std::size_t>(worker)], table);
    });
  });
  for (Index row = 0; row < x.rows(); ++row) {
    if (table.is_padding(row)) {
      table.logits.row(row).setConstant(kernels::minus_infinity<W>());
      table.expert.row(row).setConstant(none);
      table.weight.row(row).setZero();
    }
  }
  table.owner.set(identity_);
}

template <Real T>
void ProductKeyRouter<T>::size_table(Index num_tokens, Table& table) const {
  table.expert.resize(num_tokens, top_k());
  table.weight.resize(num_tokens, top_k());
  table.order.clear();
  for (Index row = 0; row < num_tokens; ++row) {
    if (!table.is_padding(row)) {
      table.order.push_back(row);
    }
  }
  detail::grow(table.worker, table.num_threads);
  for (Worker& worker : table.worker) {
    worker.candidates.resize(static_cast<std::size_t>(config_.num_sums()));
    for (auto& key : worker.key) {
      key.resize(static_cast<std::size_t>(config_.best_keys()));
    }
  }
}

template <Real T>
void ProductKeyRouter<T>::choose(Index i, Worker& worker, Table& table) const {
  const Index best = config_.best_keys(), num_keys = config_.num_keys;
  const W* logits[2];
  for (const Index half : {0, 1}) {
    const Place place = place_of(i, half, table);
    logits[half] = &table.logits.coeffRef(place.row, place.col);
    kernels::top_k(logits[half], nullptr, num_keys, best, worker.key[half].data());
  }
  auto next = worker.candidates.begin();
  for (Index a = 0; a < best; ++a) {
    const ExpertId first = worker.key[0][static_cast<std::size_t>(a)];
    for (Index b = 0; b < (std::min)(top_k() / (a + 1), best); ++b) {
      const ExpertId second = worker.key[1][static_cast<std::size_t>(b)];
      *next++ = {logits[0][first] + logits[1][second],
                 static_cast<ExpertId>(first * num_keys + second)};
    }
  }
  std::partial_sort(worker.candidates.begin(), worker.candidates.begin() + top_k(),
                    worker.candidates.end(), is_before);
  const Index token = table.order[static_cast<std::size_t>(i)];
  W* const weight = &table.weight.coeffRef(token, 0);
  for (Index k = 0; k < top_k(); ++k) {
    const Candidate& chosen = worker.candidates[static_cast<std::size_t>(k)];
    table.expert(token, k) = chosen.expert;
    weight[k] = chosen.sum;
  }
  kernels::softmax(weight, top_k(), weight);
}

template <Real T>
void ProductKeyRouter<T>::backward(ConstMatrixRef<T> x, const Table& table,
                                   RoutingGradient<W>& gradient, MatrixRef<T> dx,
                                   Params& grads) const {
  check_tape(table, {"Router"});
  detail::check_shape(x, table.num_tokens(), d_model(), "Router: x");
  detail::check_shape(dx, x.rows(), d_model(), "Router: dx");
  detail::throw_unless(!detail::overlap(x, dx),
                       "Router: dx overlaps x, expected memory of its own");
  check_params({"Router"});
  check_grads(*this, {.word = "Router"}, grads);
  detail::check_shape(table.expert, x.rows(), top_k(), "Router: expert");
  detail::check_shape(table.weight, x.rows(), top_k(), "Router: weight");
  detail::check_shape(table.logits, x.rows(), 2 * config_.num_keys, "Router: logits");
  gradient.validate(table);
  detail::with_team(table.num_threads, [&] {
    gradient.fill_empty(table, table.num_threads);
    for (Index row = 0; row < x.rows(); ++row) {
      if (table.is_padding(row)) {
        gradient.clear(row);
      }
    }
    detail::for_rows(static_cast<Index>(table.order.size()), table.num_threads,
                     [&](Index i) { add_gradient(i, table, gradient); });
    gate_.backward_input(params_, x, table, gradient, dx);
    gate_.backward_params(params_, x, table, gradient, grads);
  });
}

/// gradient.logits += that of the softmax over the chosen, at the places that the token has read.
template <Real T>
void ProductKeyRouter<T>::add_gradient(Index i, const Table& table,
                                       RoutingGradient<W>& gradient) const {
  const Index token = table.order[static_cast<std::size_t>(i)];
  const Place first = place_of(i, 0, table), second = place_of(i, 1, table);
  W* const dfirst = &gradient.logits.coeffRef(first.row, first.col);
  W* const dsecond = &gradient.logits.coeffRef(second.row, second.col);
  W mean(0);
  for (Index k = 0; k < top_k(); ++k) {
    mean += table.weight(token, k) * gradient.weight(token, k);
  }
  for (Index k = 0; k < top_k(); ++k) {
    const W dsum = table.weight(token, k) * (gradient.weight(token, k) - mean);
    const ExpertId e = table.expert(token, k);
    dfirst[e / config_.num_keys] += dsum;
    dsecond[e % config_.num_keys] += dsum;
  }
}

}  // namespace moe::inline MOE_INSTRUCTION_SET
