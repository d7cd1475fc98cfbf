// SPDX-License-Identifier: Apache-2.0
// The report in one screen of text, for the terminal, summary.txt and the page.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <string_view>

#include "results.hpp"

namespace moe::report {

inline std::string fixed(double value, int digits) {
  char text[64];
  std::snprintf(text, sizeof text, "%.*f", digits, value);
  return text;
}

/// Three digits at least, two after the point at most: 46.7, 619, 2.45.
inline std::string three_digits(double value) {
  return fixed(value, value < 9.995 ? 2 : value < 99.95 ? 1 : 0);
}

/// 46.7 B, 619 M.
inline std::string count(double value) {
  return value < 1e6   ? three_digits(value / 1e3) + " k"
         : value < 1e9 ? three_digits(value / 1e6) + " M"
                       : three_digits(value / 1e9) + " B";
}

inline std::string milliseconds(double seconds) {
  const double ms = 1e3 * seconds;
  return ms < 1 ? fixed(ms, ms < 0.1 ? 4 : 3) : three_digits(ms);
}

/// At least `width` wide, to the right (or, negative, to the left).
inline std::string pad(std::string_view text, int width) {
  const auto size = static_cast<std::size_t>(std::abs(width));
  const std::string fill(size - std::min(size, text.size()), ' ');
  return width < 0 ? std::string(text) + fill : fill + std::string(text);
}

inline std::string signed_percent(double share) {
  const std::string text = fixed(std::abs(share) < 0.0005 ? 0.0 : 100.0 * share, 1) + " %";
  return text.starts_with('-') ? text : '+' + text;
}

inline std::string machine_line(const Machine& m) {
  return m.cpu + ", " + std::to_string(m.threads) + (m.threads == 1 ? " thread, " : " threads, ") +
         m.simd + "; " + m.compiler + " " + m.flags + "; roofs: " + fixed(1e-9 * m.fma_roof, 0) +
         " GFLOP/s, " + fixed(1e-9 * m.read_roof, 1) + " GB/s";
}

inline std::string model_summary(const std::vector<ModelRow>& models) {
  std::string text =
      "model                   total  published    active  published  GFLOP/token  dense of equal "
      "total\n";
  for (const ModelRow& row : models) {
    const double flops = row.cost.flops_per_token;
    text += pad(row.model.name, -20) + pad(count(static_cast<double>(row.cost.total)), 9) +
            pad(signed_percent(row.total_deviation()), 11) +
            pad(count(static_cast<double>(row.cost.active)), 10) +
            pad(signed_percent(row.active_deviation()), 11) + pad(fixed(1e-9 * flops, 2), 13) +
            pad(fixed(row.equal_total.flops_per_token / flops, 1) + " x", 22) + '\n';
  }
  return text;
}

/// One line for each name(row), `width` wide, and one column for each number of tokens.
template <class Row, class Name, class Cell>
std::string by_tokens(const Grid& grid, const std::vector<Row>& rows, int width, Name name,
                      Cell cell) {
  std::string text = pad("tokens", -width), line;
  for (const Index tokens : grid.tokens) {
    text += pad(std::to_string(tokens), 15);
  }
  for (const Row& row : rows) {
    text += row.*name == line ? "" : '\n' + pad(row.*name, -width);
    text += pad(cell(row), 15);
    line = row.*name;
  }
  return text + '\n';
}

/// What each form takes and costs in accuracy; the error is that at the most tokens.
inline std::string form_summary(const std::vector<Pair>& pairs) {
  std::string text = pad("form", -20) + "         MB  bits a weight   error of y\n";
  for (std::size_t i = 0; i < pairs.size(); ++i) {
    const Pair& p = pairs[i];
    if (i + 1 == pairs.size() || pairs[i + 1].form != p.form) {
      text += pad(p.form, -20) + pad(fixed(1e-6 * p.bytes, 1), 11) + pad(fixed(p.bits, 2), 15) +
              pad(fixed(p.error, 4), 13) + '\n';
    }
  }
  return text;
}

inline std::string summary(const Report& report) {
  const auto time = [](const Measured& m) {
    const std::string ms = milliseconds(m.seconds);
    return m.dense() ? ms : ms + pad(fixed(m.speedup, 1) + "x", 7);
  };
  const auto speed = [](const Pair& p) {
    return fixed(p.moe_gflops, p.moe_gflops < 10 ? 1 : 0) + pad(fixed(p.ratio, 2), 7);
  };
  const auto exact = std::ranges::count_if(report.counted, &Counted::exact);
  return '\n' + machine_line(report.machine) +
         "\n\nPublished models, with the deviation from the published counts\n" +
         model_summary(report.models) +
         "\nMilliseconds of a forward; MoE: and how many times faster than the dense layer of "
         "equal total size\n" +
         by_tokens(report.grid, report.measured, 14, &Measured::layer, time) + '\n' +
         shape_name(report.yardstick.config) +
         ": GFLOP/s of the MoE layer, and time of the dense layer of equal active FLOPs / its "
         "time\n" +
         by_tokens(report.grid, report.yardstick.pairs, 20, &Pair::form, speed) + '\n' +
         form_summary(report.yardstick.pairs) + '\n' + std::to_string(exact) + " of " +
         std::to_string(report.counted.size()) + " counted cases are exactly as predicted\n";
}

}  // namespace moe::report
