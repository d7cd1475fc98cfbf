// SPDX-License-Identifier: Apache-2.0
// The pictures of speed: measured against theoretical speed-up, the roofline, and the forms of the
// reference layer.
#pragma once

#include "figures.hpp"

namespace moe::report {

inline constexpr std::string_view doubling_tics =
    "set xtics (1, 2, 4, 8, 16, 32, 64, 128, 256)\nset ytics (1, 2, 4, 8, 16, 32, 64, 128, 256)";

/// Measured speed-up over the dense layer of equal total size, against the ratio of their FLOPs.
inline Picture speedup_picture(const Report& report) {
  Picture picture("speedup", "Measured against theoretical speed-up", 1000, 620);
  const auto& tokens = report.grid.tokens;
  double spread = 0.92;  // sideways, so that points of one ratio can be told apart
  for (const Index n : tokens) {
    picture.data("tokens" + std::to_string(n));
    for (const Measured& m : report.measured) {
      if (!m.dense() && m.tokens == n) {
        picture << to_text(m.flop_ratio * spread) + ' ' + to_text(m.speedup);
      }
    }
    picture.end_data();
    spread += 0.04;
  }
  picture << "set logscale xy 2" << doubling_tics << "set key outside right top"
          << "set xlabel 'FLOPs of the dense layer of equal total size / FLOPs of the MoE layer'"
          << "set ylabel 'Measured speed-up'"
          << "set xrange [0.8:200]";
  std::string plot = "plot x with lines lw 2 lc rgb " + in_quotes(black) + " title 'ideal'";
  for (std::size_t i = 0; i < tokens.size(); ++i) {
    plot += ", $tokens" + std::to_string(tokens[i]) + " using 1:2 with points pt " +
            std::to_string(4 + 2 * i) + " ps 1.2 lw 2 lc rgb " + in_quotes(colour(i)) + " title '" +
            std::to_string(tokens[i]) + (tokens[i] == 1 ? " token'" : " tokens'");
  }
  picture << plot;
  return picture;
}

/// One curve for each layer, one point for each number of tokens, under the two roofs. Two curves
/// carry the numbers; on all four they stand in the same order.
inline Picture roofline_picture(const Report& report) {
  Picture picture("roofline", "Roofline", 1000, 620);
  const Index few = report.grid.experts.front(), many = report.grid.experts.back();
  const Index least = report.grid.top_k.front(), most = report.grid.top_k.back();
  const auto name = [](Index experts, Index top_k) {
    return "MoE E" + std::to_string(experts) + " K" + std::to_string(top_k);
  };
  const std::vector<std::string> layers{"dense F" + std::to_string(report.grid.active_d_ff),
                                        name(few, least), name(many, least), name(many, most)};
  const std::array<std::string_view, 2> label_place{"left offset 0.8,-0.6",
                                                    "center offset -0.6,0.9"};
  for (std::size_t i = 0; i < layers.size(); ++i) {
    picture.data("layer" + std::to_string(i));
    for (const Measured& m : report.measured) {
      if (m.layer == layers[i]) {
        picture << to_text(m.intensity()) + ' ' + to_text(m.gflops()) + ' ' +
                       std::to_string(m.tokens);
      }
    }
    picture.end_data();
  }
  const std::string fma = to_text(1e-9 * report.machine.fma_roof);
  const std::string read = to_text(1e-9 * report.machine.read_roof);
  picture << "set logscale xy"
          << "set format '%g'"
          << "set key bottom right"
          << "set xlabel 'FLOPs per byte of weights and rows; points: tokens at a time'"
          << "set ylabel 'GFLOP/s'"
          << "set xrange [0.2:2000]"
          << "set samples 1000"
          << "set yrange [*:" + fma + "*1.6]"
          << "fma = " + fma << "read = " + read << "roof(x) = x * read < fma ? x * read : fma";
  std::string plot = "plot roof(x) with lines lw 2.5 lc rgb " + in_quotes(grey) + " title '" +
                     fixed(1e-9 * report.machine.read_roof, 0) + " GB/s read, " +
                     fixed(1e-9 * report.machine.fma_roof, 0) + " GFLOP/s multiply-add'";
  for (std::size_t i = 0; i < layers.size(); ++i) {
    const std::string data = ", $layer" + std::to_string(i);
    const std::string look = in_quotes(i == 0 ? black : colour(i - 1));
    plot += data + " using 1:2 with linespoints lw 1.5 pt " + (i == 0 ? "5" : "7") +
            " ps 1.1 lc rgb " + look + " title " + in_quotes(layers[i]);
    if (i < label_place.size()) {
      plot += data + " using 1:2:3 with labels " + std::string(label_place[i]) +
              " font ',9' tc rgb " + look + " notitle";
    }
  }
  picture << plot;
  return picture;
}

/// GFLOP/s of the reference layer over the number of tokens: colour is the form, dashes are dense.
inline Picture forms_picture(const Report& report) {
  Picture picture(
      "forms", bench::shape_name(report.yardstick.config) + ": MoE and dense of equal active FLOPs",
      900, 560);
  std::vector<std::string> forms;
  for (const Pair& p : report.yardstick.pairs) {
    if (forms.empty() || forms.back() != p.form) {
      forms.push_back(p.form);
    }
  }
  for (std::size_t i = 0; i < forms.size(); ++i) {
    picture.data("form" + std::to_string(i));
    for (const Pair& p : report.yardstick.pairs) {
      if (p.form == forms[i]) {
        picture << std::to_string(p.tokens) + ' ' + to_text(p.moe_gflops) + ' ' +
                       to_text(p.dense_gflops);
      }
    }
    picture.end_data();
  }
  std::string tokens;
  for (const Index n : report.grid.tokens) {
    tokens += (tokens.empty() ? "" : ", ") + std::to_string(n);
  }
  picture << "set logscale xy"
          << "set format '%g'"
          << "set key bottom right"
          << "set xlabel 'Tokens'"
          << "set ylabel 'GFLOP/s'"
          << "set xrange [0.8:" + to_text(1.3 * static_cast<double>(report.grid.tokens.back())) +
                 "]"
          << "set xtics (" + tokens + ")";
  std::string plot = "plot " + to_text(1e-9 * report.machine.fma_roof) +
                     " with lines lw 2.5 lc rgb " + in_quotes(grey) +
                     " title 'float32 multiply-add roof'";
  for (std::size_t i = 0; i < forms.size(); ++i) {
    const std::string look = " lw 2 ps 1.1 lc rgb " + in_quotes(colour(i));
    plot += ", $form" + std::to_string(i) + " using 1:2 with linespoints pt 7" + look +
            " title 'MoE, " + forms[i] + "', $form" + std::to_string(i) +
            " using 1:3 with linespoints pt 4 dt 2" + look + " title 'dense, " + forms[i] + "'";
  }
  picture << plot;
  return picture;
}

}  // namespace moe::report
