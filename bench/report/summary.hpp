// SPDX-License-Identifier: Apache-2.0
// The report in one screen of text.
#pragma once

#include "results.hpp"
#include "text.hpp"

namespace moe::report {

inline std::string signed_percent(double share) {
  char text[32];
  std::snprintf(text, sizeof text, "%+.1f %%", std::abs(share) < 0.0005 ? 0.0 : 100.0 * share);
  return text;
}

inline std::string machine_line(const Machine& m) {
  return m.cpu + ", " + std::to_string(m.threads) + (m.threads == 1 ? " thread, " : " threads, ") +
         m.simd + "; " + m.compiler + " " + m.flags + "; roofs: " + fixed(1e-9 * m.fma_roof, 0) +
         " GFLOP/s, " + fixed(1e-9 * m.read_roof, 1) + " GB/s";
}

inline std::string model_summary(const Report& report) {
  std::string text = pad("model", -20) + pad("total", 9) + pad("published", 11) +
                     pad("active", 10) + pad("published", 11) + pad("GFLOP/token", 13) +
                     pad("dense of equal total", 22) + '\n';
  for (const ModelRow& row : report.models) {
    const double flops = row.cost.flops_per_token;
    text += pad(row.model.name, -20) + pad(count(static_cast<double>(row.cost.total)), 9) +
            pad(signed_percent(row.total_deviation()), 11) +
            pad(count(static_cast<double>(row.cost.active)), 10) +
            pad(signed_percent(row.active_deviation()), 11) + pad(fixed(1e-9 * flops, 2), 13) +
            pad(fixed(row.equal_total.flops_per_token / flops, 1) + " x", 22) + '\n';
  }
  return text;
}

/// One row for each layer, one column for each number of tokens.
template <class Cell>
std::string measured_summary(const Report& report, Cell&& cell) {
  std::string text = pad("tokens", -14);
  for (const Index tokens : report.grid.tokens) {
    text += pad(std::to_string(tokens), 15);
  }
  std::string layer;
  for (const Measured& m : report.measured) {
    if (m.layer != layer) {
      layer = m.layer;
      text += '\n' + pad(layer, -14);
    }
    text += pad(cell(m), 15);
  }
  return text + '\n';
}

/// GFLOP/s of MoE, and its time against that of dense, in each form.
inline std::string forms_summary(const Report& report) {
  std::string text = pad("tokens", -20);
  for (const Index tokens : report.grid.tokens) {
    text += pad(std::to_string(tokens), 15);
  }
  std::string form;
  for (const Pair& p : report.yardstick.pairs) {
    if (p.form != form) {
      form = p.form;
      text += '\n' + pad(form, -20);
    }
    text += pad(fixed(p.moe_gflops, p.moe_gflops < 10 ? 1 : 0), 8) + pad(fixed(p.ratio, 2), 7);
  }
  return text + '\n';
}

inline std::string counted_line(const Report& report) {
  const auto exact =
      std::count_if(report.counted.begin(), report.counted.end(),
                    [](const Counted& c) { return c.counted_flops == c.predicted_flops; });
  return std::to_string(exact) + " of " + std::to_string(report.counted.size()) +
         " counted cases are exactly as predicted";
}

inline std::string summary(const Report& report) {
  const auto cell = [](const Measured& m) {
    const std::string ms = milliseconds(m.seconds);
    return m.dense() ? ms : ms + pad(fixed(m.speedup, 1) + "x", 7);
  };
  return "\n" + machine_line(report.machine) +
         "\n\nPublished models, with the deviation from "
         "the published counts\n" +
         model_summary(report) +
         "\nMilliseconds of a forward; MoE: and how many times faster than the dense layer of "
         "equal total size\n" +
         measured_summary(report, cell) + '\n' + bench::shape_name(report.yardstick.config) +
         ": GFLOP/s of the MoE layer, and time of the dense layer of equal active FLOPs / its "
         "time\n" +
         forms_summary(report) + '\n' + counted_line(report) + '\n';
}

}  // namespace moe::report
