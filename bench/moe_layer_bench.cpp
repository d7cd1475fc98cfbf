// SPDX-License-Identifier: Apache-2.0
// MoELayer: forward, and forward with backward. Rows are checked once against the plain reference.
#include <benchmark/benchmark.h>

#include <moe/reference.hpp>

#include "shapes.hpp"

namespace moe::bench {
namespace {

/// The first rows of a batch, alone, against the reference; and in the batch, bit for bit.
bool correct(const MoELayer<float>& layer, const Matrix<float>& x, const Matrix<float>& y) {
  const Matrix<float> few = x.topRows(std::min<Index>(x.rows(), 2));
  MoELayer<float>::Scratch scratch;
  Matrix<float> few_y(few.rows(), y.cols());
  layer.forward(few, few_y, scratch);
  const Matrix<double> expected = reference::forward(layer, few);
  return few_y == y.topRows(few.rows()) &&
         (few_y.cast<double>() - expected).norm() < 1e-5 * expected.norm();
}

void count(benchmark::State& state, const LayerCase& c, const Flops& flops) {
  const auto runs = static_cast<double>(state.iterations());
  using benchmark::Counter;
  state.counters["tokens/s"] = Counter(runs * static_cast<double>(c.tokens), Counter::kIsRate);
  state.counters["FLOP/s"] = Counter(runs * static_cast<double>(flops.matmul), Counter::kIsRate);
}

void forward(benchmark::State& state, const LayerCase& c) {
  const auto layer = random_layer(c.config);
  const auto x = random_tokens(c.tokens, c.config.d_model, 7);
  Matrix<float> y(c.tokens, c.config.d_model);
  MoELayer<float>::Scratch scratch;
  layer.forward(x, y, scratch);
  if (!correct(layer, x, y)) {
    state.SkipWithError("differs from the reference");
    return;
  }
  for (auto _ : state) {
    layer.forward(x, y, scratch);
    benchmark::DoNotOptimize(y.data());
  }
  count(state, c, forward_flops(c.config, executed_work(scratch.plan)).sum());
}

void forward_backward(benchmark::State& state, const LayerCase& c) {
  const auto layer = random_layer(c.config);
  const auto x = random_tokens(c.tokens, c.config.d_model, 7);
  const auto dy = random_tokens(c.tokens, c.config.d_model, 8);
  Matrix<float> y(c.tokens, c.config.d_model), dx = y;
  MoELayer<float>::Tape tape;
  auto grads = layer.zero_grads();
  layer.forward(x, y, tape);
  if (!correct(layer, x, y)) {
    state.SkipWithError("differs from the reference");
    return;
  }
  for (auto _ : state) {
    layer.forward(x, y, tape);
    layer.backward(x, dy, tape, dx, grads);
    benchmark::DoNotOptimize(dx.data());
  }
  const Work work = executed_work(tape.plan);
  count(state, c, forward_flops(c.config, work).sum() + backward_flops(c.config, work).sum());
}

[[maybe_unused]] const bool registered = [] {
  for (const LayerCase& c : layer_cases()) {
    benchmark::RegisterBenchmark(("forward/" + c.name()).c_str(), forward, c)->UseRealTime();
    benchmark::RegisterBenchmark(("forward_backward/" + c.name()).c_str(), forward_backward, c)
        ->UseRealTime();
  }
  return true;
}();

}  // namespace
}  // namespace moe::bench
