// SPDX-License-Identifier: Apache-2.0
// Rows as text and as JSON.
#pragma once

#include <nlohmann/json.hpp>

#include "measure.hpp"

namespace moe::bench {

inline nlohmann::ordered_json to_json(const Row& row) {
  return {{"style", row.shape.style},
          {"shape", shape_name(row.shape.config)},
          {"tokens", row.shape.tokens},
          {"seconds", row.of_steps(&StepRun::seconds)},
          {"gflops", row.of_steps(&StepRun::gflops)},
          {"tile_share", row.of_steps(&StepRun::tile_share)},
          {"parts",
           {{"forward", row.part(&StepParts::forward)},
            {"losses", row.part(&StepParts::losses)},
            {"zero", row.part(&StepParts::zero)},
            {"backward", row.part(&StepParts::backward)},
            {"optimiser", row.part(&StepParts::optimiser)}}},
          {"adamw_seconds", row.of_updates(&UpdateRun::seconds)},
          {"adamw_gbs", row.of_updates(&UpdateRun::gbs)},
          {"adamw_read_share", row.of_updates(&UpdateRun::read_share)},
          {"libtorch_seconds", row.of_steps(&StepRun::peer_seconds)},
          {"libtorch_ratio", row.of_steps(&StepRun::ratio)}};
}

inline void print_head() {
  std::printf("%-8s %-20s %6s %9s %8s %6s   %-42s %9s %6s %6s %12s %6s\n", "style", "shape",
              "tokens", "ms", "GFLOP/s", "tile", "forward losses zero backward optimiser, %",
              "AdamW ms", "GB/s", "read", "LibTorch ms", "ratio");
}

inline void print(const Row& row) {
  const auto percent = [&](double StepParts::*which) { return 100 * row.part(which); };
  std::printf(
      "%-8s %-20s %6td %9.1f %8.1f %6.3f   %7.1f %6.1f %4.1f %8.1f %9.1f    %9.1f %6.1f "
      "%6.3f",
      row.shape.style.c_str(), shape_name(row.shape.config).c_str(), row.shape.tokens,
      1e3 * row.of_steps(&StepRun::seconds), row.of_steps(&StepRun::gflops),
      row.of_steps(&StepRun::tile_share), percent(&StepParts::forward), percent(&StepParts::losses),
      percent(&StepParts::zero), percent(&StepParts::backward), percent(&StepParts::optimiser),
      1e3 * row.of_updates(&UpdateRun::seconds), row.of_updates(&UpdateRun::gbs),
      row.of_updates(&UpdateRun::read_share));
  if (const double seconds = row.of_steps(&StepRun::peer_seconds); seconds > 0) {
    std::printf(" %12.1f %6.2f\n", 1e3 * seconds, row.of_steps(&StepRun::ratio));
  } else {
    std::printf(" %12s %6s\n", "none", "");
  }
  std::fflush(stdout);
}

}  // namespace moe::bench
