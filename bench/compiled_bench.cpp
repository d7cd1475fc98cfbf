// SPDX-License-Identifier: Apache-2.0
// The library moe::compiled in each of its instruction sets, beside the headers as this unit
// compiles them: packed forwards of one token and of many.
#include <benchmark/benchmark.h>

#include <moe/compiled.hpp>

#include "shapes.hpp"

namespace moe::bench {
namespace {

template <class Layer>
void run_forward(benchmark::State& state, const Layer& layer, Index tokens) {
  const Matrix<float> x = Matrix<float>::Random(tokens, layer.d_in());
  Matrix<float> y(tokens, layer.d_out());
  typename Layer::Scratch scratch;
  for (auto _ : state) {
    layer.forward(x, y, scratch);
    benchmark::DoNotOptimize(y.data());
  }
}

template <class S>
void register_benches(const MoEConfig& config, const std::string& weights) {
  const auto add = [&](const std::string& form, const auto& make) {
    for (const Index tokens : {1, 512}) {
      benchmark::RegisterBenchmark(
          (form + '/' + weights + '/' + std::to_string(tokens)).c_str(),
          [make, tokens](benchmark::State& state) { run_forward(state, make(), tokens); })
          ->UseRealTime();
    }
  };
  add("headers", [config] { return pack<S>(MoELayer<float>(config, 1)); });
  for (const std::string_view set : compiled::instruction_sets()) {
    add("compiled " + std::string(set),
        [config, set] { return compiled::pack<S>(compiled::MoELayer<float>(config, 1, set)); });
  }
}

[[maybe_unused]] const bool registered = [] {
  const MoEConfig config = smoke() ? equal_active(32, 64, 4, 2) : equal_active(1024, 7168, 8, 2);
  register_benches<float>(config, "float");
  register_benches<bf16>(config, "bfloat16");
  return true;
}();

}  // namespace
}  // namespace moe::bench
