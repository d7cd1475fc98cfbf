// SPDX-License-Identifier: Apache-2.0
// The shapes that benches and report measure, in one place, and random weights for them.
#pragma once

#include <cstdlib>
#include <moe/moe.hpp>
#include <string>
#include <vector>

namespace moe::bench {

/// A gated layer whose top_k experts together are as wide as one dense feed-forward of active_d_ff:
/// the same FLOPs per token, num_experts / top_k times the parameters.
inline MoEConfig equal_active(Index d_model, Index active_d_ff, Index num_experts, Index top_k) {
  return {
      .d_model = d_model, .d_ff = active_d_ff / top_k, .num_experts = num_experts, .top_k = top_k};
}

/// As in d1024-f3584-e8-k2.
inline std::string shape_name(const MoEConfig& c) {
  return "d" + std::to_string(c.d_model) + "-f" + std::to_string(c.d_ff) + "-e" +
         std::to_string(c.num_experts) + "-k" + std::to_string(c.top_k);
}

/// A dense feed-forward as wide as all experts of the layer together.
inline Index total_width(const MoEConfig& c) { return c.num_experts * c.d_ff; }
inline Index active_width(const MoEConfig& c) { return c.top_k * c.d_ff; }

/// A dense feed-forward as cost.hpp sees it: one expert that every token takes, without a router.
inline double dense_flops(Index d_model, Index d_ff, Index tokens) {
  const MoEConfig c = equal_active(d_model, d_ff, 1, 1);
  return forward_flops(c, predicted_work(c, tokens)).experts.matmul;
}

/// What the report measures: every number of experts with every top_k at every number of tokens.
struct Grid {
  Index d_model, active_d_ff;
  std::vector<Index> experts, top_k, tokens;
  MoEConfig reference;  ///< the layer whose speed against dense is the library's yardstick
  MoEConfig load;       ///< of the picture of the experts' loads, with a capacity
  Index load_tokens;
  double seconds_per_case;
};

inline Grid full_grid() {
  Grid grid{512,  1024, {8, 16, 32, 64, 128}, {1, 2, 4, 8}, {1, 16, 128, 512, 2048}, {}, {},
            2048, 0.25};
  grid.reference = equal_active(1024, 7168, 8, 2);
  grid.load = equal_active(512, 1024, 64, 4);
  grid.load.capacity.factor = 1.25;
  return grid;
}

/// A grid in little, to see that everything runs.
inline Grid quick_grid() {
  Grid grid{64, 128, {8, 16}, {1, 4}, {1, 16, 64}, {}, {}, 256, 0.0};
  grid.reference = equal_active(64, 128, 8, 2);
  grid.load = equal_active(64, 128, 16, 2);
  grid.load.capacity.factor = 1.25;
  return grid;
}

/// CTest asks for the smallest sizes.
inline bool smoke() { return std::getenv("MOE_BENCH_SMOKE") != nullptr; }

/// A product x (rows, k) * w (cols, k)^T.
struct GemmCase {
  Index rows, cols, k;
};

inline std::vector<GemmCase> gemm_cases() {
  if (smoke()) {
    return {{5, 64, 32}};
  }
  return {
      {1, 3584, 1024}, {4, 3584, 1024}, {32, 3584, 1024}, {128, 3584, 1024}, {1024, 3584, 1024}};
}

/// Uniform in +-sqrt(3 / cols): the variance of the library's own initial weights, without the
/// logarithms of a normal distribution, which take longer than the measurement.
inline Matrix<float> random_matrix(Index rows, Index cols, std::uint64_t seed, Index fan_in = 0) {
  Matrix<float> m(rows, cols);
  const detail::CounterRandom random(seed, 0);
  const double range = std::sqrt(3.0 / static_cast<double>(fan_in > 0 ? fan_in : cols));
  detail::for_rows(rows, detail::num_threads(0), [&](Index row) {
    for (Index col = 0; col < cols; ++col) {
      const auto position = static_cast<std::uint64_t>(row * cols + col);
      m(row, col) = static_cast<float>(range * (2.0 * random.uniform(position) - 1.0));
    }
  });
  return m;
}

/// Tokens with elements of variance 1.
inline Matrix<float> random_tokens(Index tokens, Index d_model, std::uint64_t seed) {
  return random_matrix(tokens, d_model, seed, 1);
}

/// T rounds the same float weights.
template <Real T = float>
Expert<T> random_expert(Index d_model, Index d_ff, std::uint64_t seed,
                        const ExpertConfig& kind = {}) {
  ExpertParams<T> params;
  if (kind.gated) {
    params.gate = random_matrix(d_ff, d_model, 3 * seed).template cast<T>();
  }
  params.up = random_matrix(d_ff, d_model, 3 * seed + 1).template cast<T>();
  params.down = random_matrix(d_model, d_ff, 3 * seed + 2).template cast<T>();
  return Expert<T>(std::move(params), kind);
}

/// Router and experts of a config without shared expert.
template <Real T = float>
MoELayer<T> random_layer(const MoEConfig& c) {
  std::vector<Expert<T>> experts;
  for (Index e = 0; e < c.num_experts; ++e) {
    experts.push_back(
        random_expert<T>(c.d_model, c.d_ff, static_cast<std::uint64_t>(e + 1), c.expert));
  }
  return MoELayer<T>(Router<T>(c.d_model, c.num_experts, c.top_k, c.router, 1), std::move(experts),
                     {c.capacity, c.weight_on});
}

inline DenseFfn<float> random_dense(Index d_model, Index d_ff) {
  return DenseFfn<float>(random_expert(d_model, d_ff, 1));
}

}  // namespace moe::bench
