// SPDX-License-Identifier: Apache-2.0
// kernels::gemm against Eigen's product, one thread, x (rows, k) * w (cols, k)^T: an expert's up
// projection. Checked once against plain sums. Weights rotate, so that they come from memory.
#include <benchmark/benchmark.h>

#include "shapes.hpp"

namespace moe::bench {
namespace {

constexpr std::size_t rotation = 16;

using Product = void (*)(const Matrix<float>& x, const Matrix<float>& w, Matrix<float>& y);

void ours(const Matrix<float>& x, const Matrix<float>& w, Matrix<float>& y) {
  static kernels::GemmMemory<float> memory;
  kernels::gemm<float>(kernels::view(x), kernels::view(w).transpose(), y, kernels::Update::assign,
                       memory);
}

void eigen(const Matrix<float>& x, const Matrix<float>& w, Matrix<float>& y) {
  y.noalias() = x * w.transpose();
}

void multiply(benchmark::State& state, const GemmCase& c, Product product) {
  const auto x = random_tokens(c.rows, c.k, 1);
  std::vector<Matrix<float>> weights;
  for (std::size_t i = 0; i < rotation; ++i) {
    weights.push_back(random_matrix(c.cols, c.k, i + 2));
  }
  Matrix<float> y(c.rows, c.cols), plain(c.rows, c.cols);
  product(x, weights.front(), y);
  kernels::gemm_plain<float>(kernels::view(x), kernels::view(weights.front()).transpose(), plain,
                             kernels::Update::assign);
  if (!((y - plain).norm() < 1e-5F * plain.norm())) {
    state.SkipWithError("differs from plain sums");
    return;
  }
  std::size_t next = 0;
  for (auto _ : state) {
    product(x, weights[next++ % rotation], y);
    benchmark::DoNotOptimize(y.data());
  }
  const double flops = 2.0 * static_cast<double>(c.rows * c.cols * c.k);
  state.counters["FLOP/s"] = benchmark::Counter(static_cast<double>(state.iterations()) * flops,
                                                benchmark::Counter::kIsRate);
}

[[maybe_unused]] const bool registered = [] {
  Eigen::setNbThreads(1);
  for (const GemmCase& c : gemm_cases()) {
    const std::string shape =
        std::to_string(c.rows) + "x" + std::to_string(c.cols) + "x" + std::to_string(c.k);
    for (const auto& [name, product] :
         {std::pair<const char*, Product>{"moe/", ours}, {"eigen/", eigen}}) {
      benchmark::RegisterBenchmark((name + shape).c_str(), multiply, c, product);
    }
  }
  return true;
}();

}  // namespace
}  // namespace moe::bench
