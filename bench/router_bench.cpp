// SPDX-License-Identifier: Apache-2.0
// Everything of a layer that is not its experts: the router with its softmax and top-k, the plan,
// and combine. The router's choices are checked once against the plain reference.
#include <benchmark/benchmark.h>

#include <moe/reference.hpp>

#include "shapes.hpp"

namespace moe::bench {
namespace {

using benchmark::Counter;

/// A layer, and how many tokens it gets.
struct LayerCase {
  MoEConfig config;
  Index tokens;

  std::string name() const { return shape_name(config) + '/' + std::to_string(tokens); }
};

std::vector<LayerCase> router_cases() {
  if (smoke()) {
    return {{equal_active(32, 64, 4, 2), 8}};
  }
  const MoEConfig few = equal_active(1024, 7168, 8, 2), many = equal_active(2048, 8192, 64, 8),
                  tiny = equal_active(1024, 1024, 4096, 8);
  return {{few, 1}, {few, 2048}, {many, 1}, {many, 2048}, {tiny, 1}, {tiny, 2048}, {tiny, 8192}};
}

/// The first token's choices.
bool correct(const Router<float>& router, const Matrix<float>& x,
             const Router<float>::Table& table) {
  reference::Row probs;
  const auto expected = reference::route(router.params(), router.config(), {router.top_k()},
                                         reference::row_of(x, 0), probs);
  for (std::size_t k = 0; k < expected.size(); ++k) {
    const auto choice = static_cast<Index>(k);
    if (table.expert(0, choice) != expected[k].expert ||
        !(std::abs(static_cast<double>(table.weight(0, choice)) - expected[k].weight) < 1e-5)) {
      return false;
    }
  }
  return true;
}

void route(benchmark::State& state, const LayerCase& c) {
  const Router<float> router(c.config.d_model, c.config.num_experts, c.config.top_k, RouterConfig{},
                             1);
  const auto x = random_tokens(c.tokens, c.config.d_model, 7);
  Router<float>::Table table;
  router.route(x, {}, table);
  if (!correct(router, x, table)) {
    state.SkipWithError("differs from the reference");
    return;
  }
  for (auto _ : state) {
    router.route(x, {}, table);
    benchmark::DoNotOptimize(table.weight.data());
  }
  const Work work{c.tokens, c.tokens * c.config.top_k, 0.0};
  const double flops = forward_flops(c.config, work).router.total();
  state.counters["FLOP/s"] = Counter(flops, Counter::kIsIterationInvariantRate);
}

/// A table with random choices, no two of a token the same.
RoutingTable<float> random_table(const LayerCase& c) {
  RoutingTable<float> table;
  table.expert.resize(c.tokens, c.config.top_k);
  table.weight.setConstant(c.tokens, c.config.top_k, 1.0F / static_cast<float>(c.config.top_k));
  const detail::CounterRandom random(3, 0);
  for (Index t = 0; t < c.tokens; ++t) {
    const auto first = random.bits(static_cast<std::uint64_t>(t));
    for (Index k = 0; k < c.config.top_k; ++k) {
      const auto step = static_cast<std::uint64_t>(k * (c.config.num_experts / c.config.top_k));
      table.expert(t, k) =
          static_cast<ExpertId>((first + step) % static_cast<std::uint64_t>(c.config.num_experts));
    }
  }
  return table;
}

void plan(benchmark::State& state, const LayerCase& c) {
  const auto table = random_table(c);
  KeptChoices kept;
  DispatchPlan plan;
  for (auto _ : state) {
    kept.select(table, c.config.num_experts, {}, {});
    plan.build(table, kept, c.config.num_experts);
    benchmark::DoNotOptimize(plan.num_rows());
  }
}

void combine(benchmark::State& state, const LayerCase& c) {
  const auto table = random_table(c);
  KeptChoices kept;
  DispatchPlan plan;
  kept.select(table, c.config.num_experts, {}, {});
  plan.build(table, kept, c.config.num_experts);
  std::vector<float> weight;
  gather_weights(table.weight, plan, weight);
  const auto rows = random_matrix(plan.num_rows(), c.config.d_model, 5);
  Matrix<float> y(c.tokens, c.config.d_model);
  for (auto _ : state) {
    combine_rows<float>(rows, plan, weight, nullptr, y, detail::num_threads(0));
    benchmark::DoNotOptimize(y.data());
  }
  const auto bytes = static_cast<double>((rows.size() + y.size()) * Index{sizeof(float)});
  state.counters["B/s"] = Counter(bytes, Counter::kIsIterationInvariantRate);
}

/// Rows of logits: enough of them that no branch is learnt by heart.
Matrix<float> logits(Index num_experts, bool ascending) {
  Matrix<float> m = random_tokens(std::max<Index>(64, 65536 / num_experts), num_experts, 9);
  for (Index row = 0; ascending && row < m.rows(); ++row) {
    std::sort(&m(row, 0), &m(row, 0) + num_experts);
  }
  return m;
}

void softmax(benchmark::State& state, Index num_experts) {
  const auto logit = logits(num_experts, false);
  Matrix<float> prob(1, num_experts);
  Index row = 0;
  for (auto _ : state) {
    kernels::softmax(&logit(row, 0), num_experts, prob.data());
    benchmark::DoNotOptimize(prob.data());
    row = row + 1 < logit.rows() ? row + 1 : 0;
  }
}

void top_k(benchmark::State& state, Index num_experts, Index k, bool ascending) {
  const auto logit = logits(num_experts, ascending);
  std::vector<ExpertId> chosen(static_cast<std::size_t>(k));
  Index row = 0;
  for (auto _ : state) {
    kernels::top_k(&logit(row, 0), nullptr, num_experts, k, chosen.data());
    benchmark::DoNotOptimize(chosen.data());
    row = row + 1 < logit.rows() ? row + 1 : 0;
  }
}

[[maybe_unused]] const bool registered = [] {
  for (const LayerCase& c : router_cases()) {
    benchmark::RegisterBenchmark(("route/" + c.name()).c_str(), route, c)->UseRealTime();
    benchmark::RegisterBenchmark(("plan/" + c.name()).c_str(), plan, c);
    benchmark::RegisterBenchmark(("combine/" + c.name()).c_str(), combine, c)->UseRealTime();
  }
  for (const auto& [num_experts, k] :
       {std::pair<Index, Index>{8, 2}, {64, 8}, {128, 8}, {256, 8}, {4096, 8}, {4096, 64}}) {
    const std::string e = "E" + std::to_string(num_experts), e_k = e + "_K" + std::to_string(k);
    if (k <= 8) {
      benchmark::RegisterBenchmark(("softmax/" + e).c_str(), softmax, num_experts);
    }
    benchmark::RegisterBenchmark(("top_k/" + e_k).c_str(), top_k, num_experts, k, false);
    benchmark::RegisterBenchmark(("top_k/" + e_k + "/ascending").c_str(), top_k, num_experts, k,
                                 true);
  }
  return true;
}();

}  // namespace
}  // namespace moe::bench
