// SPDX-License-Identifier: Apache-2.0
// The pictures over the number of parameters: FLOPs and time.
#pragma once

#include <limits>

#include "gnuplot.hpp"
#include "summary.hpp"

namespace moe::report {

inline std::string to_text(double value) { return significant(value, 7); }

/// 1 M, 10 M, ... as tics of a logarithmic axis.
inline const std::string
    layer_tics =
        "('1 k' 1e3, '10 k' 1e4, '100 k' 1e5, '1 M' 1e6, '10 M' 1e7, '100 M' 1e8, '1 G' 1e9)",
    model_tics = "set xtics ('1 B' 1e9, '10 B' 1e10, '100 B' 1e11, '1 T' 1e12)";

inline std::vector<std::string_view> families(const Report& report) {
  std::vector<std::string_view> names;
  for (const ModelRow& row : report.models) {
    if (std::find(names.begin(), names.end(), row.model.family) == names.end()) {
      names.push_back(row.model.family);
    }
  }
  return names;
}

/// The name of a model less that of its family, above its point unless it would meet another there.
inline std::string label(const ModelRow& row, std::string_view text_colour) {
  std::string_view text = row.model.name, place = "center offset 0,0.9";
  text.remove_prefix(row.model.family.size());
  text.remove_prefix(text.starts_with('-') ? 1 : 0);
  if (row.model.family == "OLMoE" || row.model.name == "Qwen1.5-MoE-A2.7B") {
    place = "right offset -1,0";
  } else if (row.model.name == "Qwen3-30B-A3B") {
    place = "left offset 1,0";
  } else if (row.model.name == "DeepSeek-V2-Lite") {
    place = "center offset 0,-0.9";
  }
  return "set label " + in_quotes(text) + " at " + to_text(static_cast<double>(row.cost.total)) +
         ',' + to_text(row.cost.flops_per_token) + ' ' + std::string(place) +
         " font ',10' tc rgb " + in_quotes(text_colour);
}

/// Left: published models. The dense line is 2 FLOPs for each parameter.
inline void models_panel(const Report& report, Picture& picture) {
  const auto names = families(report);
  for (std::size_t f = 0; f < names.size(); ++f) {
    picture.data("family" + std::to_string(f));
    for (const ModelRow& row : report.models) {
      if (row.model.family == names[f]) {
        picture << to_text(static_cast<double>(row.cost.total)) + ' ' +
                       to_text(row.cost.flops_per_token);
      }
    }
    picture.end_data();
  }
  picture << "set title 'Published models'"
          << "set xlabel 'Total parameters'"
          << "set ylabel 'FLOPs per token'"
          << "set logscale xy" << model_tics
          << "set ytics ('0.1 G' 1e8, '1 G' 1e9, '10 G' 1e10, '100 G' 1e11, '1 T' 1e12)"
          << "set key top left"
          << "set xrange [3e8:3e12]"
          << "set yrange [2e8:2.5e12]";
  std::string plot = "plot 2*x with lines lw 2 lc rgb '" + std::string(black) +
                     "' title 'dense: every parameter for every token'";
  for (std::size_t f = 0; f < names.size(); ++f) {
    plot += ", $family" + std::to_string(f) + " with points pt 7 ps 1.3 lc rgb " +
            in_quotes(colour(f)) + " title " + in_quotes(names[f]);
    for (const ModelRow& row : report.models) {
      if (row.model.family == names[f]) {
        picture << label(row, colour(f));
      }
    }
  }
  picture << plot;
}

/// A range of a logarithmic axis: figure(m) of all layers measured at so many tokens, with these
/// factors of room, above for a key.
template <class Figure>
std::string range(const Report& report, Index tokens, double below, double above, Figure&& figure) {
  double least = std::numeric_limits<double>::infinity(), most = 0;
  for (const Measured& m : report.measured) {
    if (m.tokens == tokens) {
      least = std::min(least, figure(m));
      most = std::max(most, figure(m));
    }
  }
  return "[" + to_text(least / below) + ':' + to_text(most * above) + ']';
}

inline std::string params_range(const Report& report) {
  return "set xrange " + range(report, report.grid.tokens.back(), 1.6, 1.6,
                               [](const Measured& m) { return m.total_params; });
}

inline double ms_per_token(const Measured& m) {
  return 1e3 * m.seconds / static_cast<double>(m.tokens);
}

inline double flops_per_token(const Measured& m) {
  return m.matmul_flops / static_cast<double>(m.tokens);
}

/// The layers measured here at one number of tokens, as data blocks: dense, and one for each top_k.
inline void layer_data(const Report& report, Index tokens, const std::string& suffix,
                       Picture& picture) {
  const auto block = [&](const std::string& name, Index top_k) {
    picture.data(name + suffix);
    for (const Measured& m : report.measured) {
      if (m.tokens == tokens && m.top_k == top_k) {
        picture << to_text(m.total_params) + ' ' + to_text(flops_per_token(m)) + ' ' +
                       to_text(ms_per_token(m));
      }
    }
    picture.end_data();
  };
  block("dense", 0);
  for (const Index top_k : report.grid.top_k) {
    block("top" + std::to_string(top_k) + "_", top_k);
  }
}

/// Curves of the blocks above: column 2 (FLOPs) or 3 (milliseconds).
inline std::string layer_plot(const Report& report, const std::string& suffix, int column) {
  const std::string axes = " using 1:" + std::to_string(column) + " with linespoints lw 2 ";
  std::string plot =
      "plot $dense" + suffix + axes + "pt 5 ps 0.9 lc rgb " + in_quotes(black) + " title 'dense'";
  const auto& top_k = report.grid.top_k;
  for (std::size_t i = 0; i < top_k.size(); ++i) {
    plot += ", $top" + std::to_string(top_k[i]) + '_' + suffix + axes + "pt " +
            std::to_string(7 + 2 * i) + " ps " + fixed(1.9 - 0.3 * static_cast<double>(i), 1) +
            " lc rgb " + in_quotes(colour(i)) + " title 'MoE, top " + std::to_string(top_k[i]) +
            "'";
  }
  return plot;
}

inline Picture flops_picture(const Report& report) {
  Picture picture("flops", "FLOPs per token against total parameters", 1200, 560);
  const Index tokens = report.grid.tokens.back();
  layer_data(report, tokens, "", picture);
  picture.panels(2);
  models_panel(report, picture);
  picture << "unset label"
          << "set xtics " + layer_tics << "set ytics " + layer_tics
          << "set title 'Layers measured here (width " + std::to_string(report.grid.d_model) + ")'"
          << "set ylabel 'FLOPs per token and layer'" << params_range(report)
          << "set yrange " + range(report, tokens, 3, 10, flops_per_token)
          << layer_plot(report, "", 2);
  return picture;
}

inline Picture time_picture(const Report& report) {
  Picture picture("time", "Time per token against total parameters", 1200, 470);
  const auto& all = report.grid.tokens;
  const std::vector<Index> shown{all.front(), all[all.size() / 2], all.back()};
  for (std::size_t i = 0; i < shown.size(); ++i) {
    layer_data(report, shown[i], "_" + std::to_string(i), picture);
  }
  picture.panels(static_cast<int>(shown.size()));
  picture << "set logscale xy"
          << "set xtics " + layer_tics << params_range(report)
          << "set xlabel 'Total parameters of the layer'"
          << "set ylabel 'Milliseconds per token'"
          << "set key top left"
          << "set format y '%g'";
  for (std::size_t i = 0; i < shown.size(); ++i) {
    picture << "set title '" + std::to_string(shown[i]) +
                   (shown[i] == 1 ? " token'" : " tokens at a time'")
            << "set yrange " + range(report, shown[i], 3, 30, ms_per_token)
            << layer_plot(report, "_" + std::to_string(i), 3);
  }
  return picture;
}

}  // namespace moe::report
