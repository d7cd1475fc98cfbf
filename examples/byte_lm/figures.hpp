// SPDX-License-Identifier: Apache-2.0
// What records say together: the margin of the MoE at equal FLOPs and for equal time, how it stands
// to the seeds' spread, and how far each MoE lies below the curve of the dense models.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace byte_lm {

using Json = nlohmann::ordered_json;

inline bool is_end(const Json& record) {
  return record["event"] == "end" && record["complete"].get<bool>();
}

/// Of the test, which chose nothing: for each seed dense - moe, and dense_long - moe.
inline Json margins_of(const std::vector<Json>& records) {
  std::map<std::uint64_t, std::map<std::string, Json>> ends;
  for (const Json& r : records) {
    if (is_end(r)) {
      ends[r["seed"].get<std::uint64_t>()][r["model"].get<std::string>()] = r;
    }
  }
  Json margins = Json::array();
  const std::map<std::string, std::string> equal{{"dense", "FLOPs per token"},
                                                 {"dense_long", "time"}};
  for (auto& [seed, of] : ends) {
    for (const auto& [dense, what] : equal) {
      if (of.contains(dense) && of.contains("moe")) {
        const Json &below = of["moe"], &above = of[dense];
        margins.push_back(
            {{"at_equal", what},
             {"seed", seed},
             {"bits", above["test_bits"].get<double>() - below["test_bits"].get<double>()},
             {"moe_parameters", below["parameters"]},
             {"dense_parameters", above["parameters"]},
             {"moe_seconds", below["seconds"]},
             {"dense_seconds", above["seconds"]}});
      }
    }
  }
  return margins;
}

/// Largest minus smallest, and their mean.
struct Spread {
  double mean = 0.0, width = 0.0;

  explicit Spread(const std::vector<double>& values) {
    const auto [least, most] = std::minmax_element(values.begin(), values.end());
    width = *most - *least;
    for (const double value : values) {
      mean += value / static_cast<double>(values.size());
    }
  }
};

/// At each evaluation that all seeds of dense and moe have: the margin of the means in bits of
/// validation, and the wider of the two spreads; and the least of their quotients from 0.4 of the
/// tokens on, null for one seed.
inline Json seeds_of(const std::vector<Json>& records, std::int64_t tokens) {
  std::map<std::int64_t, std::map<std::string, std::vector<double>>> bits;
  for (const Json& r : records) {
    if (r["event"] == "evaluation") {
      bits[r["tokens"].get<std::int64_t>()][r["model"].get<std::string>()].push_back(
          r["validation_bits"].get<double>());
    }
  }
  const std::int64_t from = tokens * 2 / 5;
  Json all{{"from_tokens", from}, {"margin_over_spread", nullptr}, {"evaluations", Json::array()}};
  std::optional<double> least;
  for (auto& [at, of] : bits) {
    if (of["dense"].size() < 2 || of["dense"].size() != of["moe"].size()) {
      continue;
    }
    const Spread dense(of["dense"]), moe(of["moe"]);
    const double margin = dense.mean - moe.mean, spread = (std::max)(dense.width, moe.width);
    all["evaluations"].push_back({{"tokens", at}, {"margin", margin}, {"spread", spread}});
    if (at >= from && spread > 0.0) {
      least = (std::min)(least.value_or(margin / spread), margin / spread);
      all["margin_over_spread"] = *least;
    }
  }
  return all;
}

/// For each MoE the worst of its blocks and evaluations, but for the first, which has the warm-up:
/// the busiest expert over the mean, and how many experts had less than a hundredth of it.
inline Json balance_of(const std::vector<Json>& records) {
  std::map<std::pair<std::uint64_t, std::string>, std::vector<const Json*>> loads;
  for (const Json& r : records) {
    if (r.contains("load")) {
      loads[{r["seed"].get<std::uint64_t>(), r["model"].get<std::string>()}].push_back(&r["load"]);
    }
  }
  Json all = Json::array();
  for (const auto& [run, evaluations] : loads) {
    double largest = 0.0;
    std::int64_t starved = 0;
    for (std::size_t i = evaluations.size() > 1 ? 1 : 0; i < evaluations.size(); ++i) {
      for (const Json& block : *evaluations[i]) {
        largest = (std::max)(largest, block["largest_over_mean"].get<double>());
        starved = (std::max)(starved, block["starved"].get<std::int64_t>());
      }
    }
    all.push_back({{"model", run.second},
                   {"seed", run.first},
                   {"largest_over_mean", largest},
                   {"starved", starved}});
  }
  return all;
}

/// Each run of a sweep, dense or not, and below which bits of the dense models' curve (straight
/// between neighbours over the logarithm of FLOPs per token) an MoE lies.
inline Json pareto_of(const std::vector<Json>& records) {
  Json all = Json::array();
  std::map<std::uint64_t, std::map<double, double>> curves;  // of a seed, by log FLOPs
  const auto log_flops = [](const Json& r) {
    return std::log(r["forward_flops_per_token"].get<double>());
  };
  for (const Json& r : records) {
    if (is_end(r) && !r.contains("specialisation")) {
      curves[r["seed"].get<std::uint64_t>()][log_flops(r)] = r["test_bits"].get<double>();
    }
  }
  for (const Json& r : records) {
    if (!is_end(r)) {
      continue;
    }
    Json point;
    for (const char* key : {"model", "seed", "parameters", "forward_flops_per_token", "seconds",
                            "validation_bits", "test_bits"}) {
      point[key] = r[key];
    }
    const auto& curve = curves[r["seed"].get<std::uint64_t>()];
    const double at = log_flops(r);
    const auto right = curve.lower_bound(at);
    if (r.contains("specialisation") && right != curve.begin() && right != curve.end()) {
      const auto left = std::prev(right);
      const double share = (at - left->first) / (right->first - left->first);
      point["below_dense_bits"] =
          left->second + share * (right->second - left->second) - r["test_bits"].get<double>();
    }
    all.push_back(std::move(point));
  }
  return all;
}

}  // namespace byte_lm
