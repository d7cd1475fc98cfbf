// SPDX-License-Identifier: Apache-2.0
// Router and DispatchPlan: everything of a layer that is not its experts. The choices are checked
// once against the plain reference.
#include <benchmark/benchmark.h>

#include <moe/reference.hpp>

#include "shapes.hpp"

namespace moe::bench {
namespace {

/// The first token's choices.
bool correct(const Router<float>& router, const Matrix<float>& x,
             const Router<float>::Table& table) {
  reference::Row probs;
  const auto expected = reference::route(router.params(), router.config(), router.top_k(), {},
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
  const MoEConfig& config = c.config;
  const Router<float> router(config.d_model, config.num_experts, config.top_k, config.router, 1);
  const auto x = random_tokens(c.tokens, config.d_model, 7);
  Router<float>::Table table;
  DispatchPlan plan;
  router.route(x, {}, table);
  if (!correct(router, x, table)) {
    state.SkipWithError("differs from the reference");
    return;
  }
  for (auto _ : state) {
    router.route(x, {}, table);
    plan.build(table, config.num_experts);
    benchmark::DoNotOptimize(plan.num_rows());
  }
  const auto runs = static_cast<double>(state.iterations());
  const Flops flops = forward_flops(config, executed_work(plan)).router;
  using benchmark::Counter;
  state.counters["tokens/s"] = Counter(runs * static_cast<double>(c.tokens), Counter::kIsRate);
  state.counters["FLOP/s"] = Counter(runs * static_cast<double>(flops.total()), Counter::kIsRate);
}

[[maybe_unused]] const bool registered = [] {
  for (const LayerCase& c : layer_cases()) {
    const std::string name = "route/D" + std::to_string(c.config.d_model) + "_E" +
                             std::to_string(c.config.num_experts) + "_K" +
                             std::to_string(c.config.top_k) + "/" + std::to_string(c.tokens);
    benchmark::RegisterBenchmark(name.c_str(), route, c)->UseRealTime();
  }
  return true;
}();

}  // namespace
}  // namespace moe::bench
