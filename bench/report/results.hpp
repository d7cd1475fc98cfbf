// SPDX-License-Identifier: Apache-2.0
// What the report knows in the end: filled by measure, stages, load and counted; read by tables
// and summary.
#pragma once

#include <moe/cost.hpp>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "../repeat.hpp"
#include "../shapes.hpp"

namespace moe::report {

using Json = nlohmann::ordered_json;
using namespace bench;

struct Machine {
  std::string cpu, compiler, flags, simd;
  int threads = 1;
  double fma_roof = 0;   ///< FLOP/s
  double read_roof = 0;  ///< bytes/s
};

struct ModelRow {
  ModelConfig model;
  ModelCost cost, equal_active, equal_total;

  double total_deviation() const {
    return static_cast<double>(cost.total) / model.published.total - 1.0;
  }
  double active_deviation() const {
    return static_cast<double>(cost.active) / model.published.active - 1.0;
  }
};

/// One layer at one number of tokens. A dense layer has no experts.
struct Measured {
  std::string layer;
  Index experts = 0, top_k = 0, d_ff = 0, tokens = 0;
  double total_params = 0, active_params = 0;
  double seconds = 0, best_seconds = 0;  ///< median and least
  int repetitions = 0;
  double matmul_flops = 0, bytes = 0;  ///< of one forward; bytes of the experts really touched
  double distinct_experts = 0;
  Stages stages = {};                  ///< of the packed layer, step by step
  double flop_ratio = 0, speedup = 0;  ///< to the dense layer of equal total size

  bool dense() const { return experts == 0; }
  double gflops() const { return 1e-9 * matmul_flops / seconds; }
  double intensity() const { return matmul_flops / bytes; }
  double fma_share(const Machine& m) const { return matmul_flops / seconds / m.fma_roof; }
  double read_share(const Machine& m) const { return bytes / seconds / m.read_roof; }
  /// Of the roof that binds: how near the time is to the least that the machine allows.
  double roof_share(const Machine& m) const { return std::max(fma_share(m), read_share(m)); }
};

/// The yardstick: a MoE layer against the dense layer of equal active FLOPs, in one of the forms
/// that the library has.
struct Pair {
  std::string form;
  double bytes = 0, bits = 0;  ///< of the MoE layer's experts; bits of one weight, scales included
  Index tokens = 0;
  double error = 0;  ///< |y - y of the unpacked float32 layer| / |that y|, over all tokens
  double moe_seconds = 0, dense_seconds = 0, moe_gflops = 0, dense_gflops = 0;
  double ratio = 0;  ///< dense seconds / MoE seconds, median of pairs measured in turn
};

struct Yardstick {
  MoEConfig config = {};
  std::vector<Pair> pairs = {};

  /// MoELayer against DenseFfn at the most tokens.
  const Pair& reference() const {
    return *std::max_element(pairs.begin(), pairs.end(), [&](const Pair& a, const Pair& b) {
      return a.form != pairs.front().form || (b.form == pairs.front().form && a.tokens < b.tokens);
    });
  }
};

/// Rows of each expert, most loaded first.
struct Load {
  std::string routing;
  std::vector<Index> kept = {}, dropped = {};
  Index capacity = 0;
  double variation = 0;  ///< standard deviation / mean of what was asked for
  double dropped_share = 0;
};

struct Counted {
  std::string name;
  Index counted_flops = 0;
  double predicted_flops = 0;

  bool exact() const { return static_cast<double>(counted_flops) == predicted_flops; }
};

struct Report {
  Machine machine;
  Grid grid;
  std::vector<ModelRow> models;
  std::vector<Measured> measured;
  Yardstick yardstick;
  std::vector<Load> loads;
  std::vector<Counted> counted;
  Json peers;  ///< of moe_peers: the same layers through other libraries; null where it was not run
  double seconds = 0;
};

inline std::vector<ModelRow> model_rows() {
  std::vector<ModelRow> rows;
  for (const ModelConfig& model : published_models()) {
    rows.push_back(
        {model, model_cost(model), dense_of_equal_active(model), dense_of_equal_total(model)});
  }
  return rows;
}

}  // namespace moe::report
