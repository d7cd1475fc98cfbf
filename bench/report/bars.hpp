// SPDX-License-Identifier: Apache-2.0
// The pictures with bars: load of the experts, and where the time of a forward goes.
#pragma once

#include "speed.hpp"

namespace moe::report {

inline Picture load_picture(const Report& report) {
  Picture picture("load", "Rows of each expert, most loaded first", 1200, 460);
  double highest = 0;
  for (std::size_t i = 0; i < report.loads.size(); ++i) {
    const Load& load = report.loads[i];
    picture.data("load" + std::to_string(i));
    for (std::size_t e = 0; e < load.kept.size(); ++e) {
      picture << std::to_string(e + 1) + ' ' + std::to_string(load.kept[e]) + ' ' +
                     std::to_string(load.dropped[e]);
    }
    picture.end_data();
    highest = std::max(highest, static_cast<double>(load.kept.front() + load.dropped.front()));
  }
  picture.panels(static_cast<int>(report.loads.size()));
  picture << "set style data histograms"
          << "set style histogram rowstacked gap 0"
          << "set style fill solid 1.0 noborder"
          << "set boxwidth 0.8"
          << "set key top right"
          << "set xlabel 'Experts, sorted by load'"
          << "set ylabel 'Rows'"
          << "set xtics 8 out"
          << "set yrange [0:" + to_text(1.15 * highest) + "]"
          << "set xrange [-1:" + std::to_string(report.loads.front().kept.size()) + "]";
  for (std::size_t i = 0; i < report.loads.size(); ++i) {
    const Load& load = report.loads[i];
    const std::string data = "$load" + std::to_string(i);
    picture << "set title '" + load.routing + ": " + percent(load.dropped_share) +
                   " dropped, variation " + fixed(load.variation, 2) + "'"
            << "plot " + data + " using 2 lc rgb " + in_quotes(colour(0)) + " title 'computed', " +
                   data + " using 3 lc rgb " + in_quotes(colour(3)) + " title 'dropped', " +
                   std::to_string(load.capacity) + " with lines lw 2 dt 2 lc rgb " +
                   in_quotes(black) + " title 'capacity, " + std::to_string(load.capacity) +
                   " rows'";
  }
  return picture;
}

/// Share of each step at each number of tokens, for a coarse and a fine layer.
inline Picture stages_picture(const Report& report) {
  Picture picture("stages", "Where the time of MoELayer::forward goes, step by step", 1200, 480);
  const auto& grid = report.grid;
  const std::array<std::string, 2> layers{
      "MoE E" + std::to_string(grid.experts.front()) + " K" + std::to_string(grid.top_k.front()),
      "MoE E" + std::to_string(grid.experts.back()) + " K" + std::to_string(grid.top_k.back())};
  for (std::size_t i = 0; i < layers.size(); ++i) {
    picture.data("stages" + std::to_string(i));
    for (const Measured& m : report.measured) {
      if (m.layer == layers[i]) {
        std::string line = std::to_string(m.tokens);
        for (const double s :
             {m.stages.experts, m.stages.combine, m.stages.gather, m.stages.plan, m.stages.route}) {
          line += ' ' + to_text(100.0 * s / m.stages.sum());
        }
        picture << line;
      }
    }
    picture.end_data();
  }
  picture.panels(2);
  picture << "set style data histograms"
          << "set style histogram rowstacked"
          << "set style fill solid 1.0 noborder"
          << "set boxwidth 0.7"
          << "set key outside right top invert"
          << "set yrange [0:100]"
          << "set xlabel 'Tokens'"
          << "set ylabel 'Share of the time, %'";
  const std::array<std::string_view, 5> names{"experts", "combine", "gather", "plan", "route"};
  for (std::size_t i = 0; i < layers.size(); ++i) {
    picture << "set title '" + layers[i] + "'";
    std::string plot = "plot ";
    for (std::size_t s = 0; s < names.size(); ++s) {
      plot += (s == 0 ? "" : ", ") + ("$stages" + std::to_string(i)) + " using " +
              std::to_string(s + 2) + (s == 0 ? ":xtic(1)" : "") + " lc rgb " +
              in_quotes(colour(s)) + " title " + in_quotes(names[s]);
    }
    picture << plot;
  }
  return picture;
}

inline std::vector<Picture> all_pictures(const Report& report) {
  std::vector<Picture> pictures;
  pictures.push_back(flops_picture(report));
  pictures.push_back(time_picture(report));
  pictures.push_back(speedup_picture(report));
  pictures.push_back(roofline_picture(report));
  pictures.push_back(forms_picture(report));
  pictures.push_back(load_picture(report));
  pictures.push_back(stages_picture(report));
  return pictures;
}

}  // namespace moe::report
