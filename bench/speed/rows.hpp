// SPDX-License-Identifier: Apache-2.0
// Rows as text and as JSON.
#pragma once

#include <cstdio>
#include <nlohmann/json.hpp>

#include "measure.hpp"

namespace moe::bench {

inline nlohmann::ordered_json to_json(const Row& row) {
  nlohmann::ordered_json json{{"type", row.c.type_name()},       {"pass", row.c.pass_name()},
                              {"shape", row.c.shape()},          {"tokens", row.c.tokens},
                              {"routing", row.c.routing_name()}, {"gflops", row.gflops},
                              {"weight_gbs", row.weight_gbs},    {"roof", row.roof},
                              {"roof_value", row.roof_value},    {"share", row.share},
                              {"tile_share", row.tile_share},    {"stages", nullptr}};
  if (row.stages) {
    const Stages& s = *row.stages;
    json["stages"] = {{"route", s.route / s.sum()},
                      {"plan", s.plan / s.sum()},
                      {"experts", s.experts / s.sum()},
                      {"combine", s.combine / s.sum()}};
  }
  return json;
}

inline void print_head() {
  std::printf("%-5s %-7s %-20s %6s %-7s %9s %8s   %-11s %6s %6s   %s\n", "type", "pass", "shape",
              "tokens", "routing", "GFLOP/s", "GB/s", "roof", "share", "tile",
              "route plan experts combine, %");
}

inline void print_left_out(const Case& c) {
  std::printf("%-5s %-7s %-20s %6s %-7s left out: takes %.1f GB, this machine has %.1f GB\n",
              c.type_name().c_str(), c.pass_name().c_str(), c.shape().c_str(), "",
              c.routing_name().c_str(), 1e-9 * weight_bytes(c), 1e-9 * memory_bytes());
}

inline void print(const Row& row) {
  std::printf("%-5s %-7s %-20s %6td %-7s %9.1f %8.2f   %-4s %6.1f %6.3f %6.3f",
              row.c.type_name().c_str(), row.c.pass_name().c_str(), row.c.shape().c_str(),
              row.c.tokens, row.c.routing_name().c_str(), row.gflops, row.weight_gbs,
              row.roof.c_str(), row.roof_value, row.share, row.tile_share);
  if (row.stages) {
    const Stages& s = *row.stages;
    const double percent = 100 / s.sum();
    std::printf("   %5.1f %4.1f %7.1f %7.1f", percent * s.route, percent * s.plan,
                percent * s.experts, percent * s.combine);
  }
  std::printf("\n");
  std::fflush(stdout);
}

inline void print_roofs(const Probes& probes) {
  std::printf("Roofs, median (least to most):");
  for (const auto& [unit, values] : probes.seen()) {
    const auto [least, most] = std::minmax_element(values.begin(), values.end());
    std::printf("  %s %.1f (%.1f to %.1f)", unit.c_str(), median(values), *least, *most);
  }
  std::printf("\n");
}

}  // namespace moe::bench
