// SPDX-License-Identifier: Apache-2.0
// A forward taken apart: its steps one after the other, through the library's public functions, so
// that each can be timed.
#pragma once

#include "timing.hpp"

namespace moe::report {

class StagedForward {
 public:
  StagedForward(const MoELayer<float>& layer, int threads)
      : layer_(layer), threads_(threads), workers_(static_cast<std::size_t>(threads)) {}

  /// y = layer(x), and how long each step took.
  Stages run(ConstMatrixRef<float> x, MatrixRef<float> y) {
    Stages stages;
    stages.route = seconds_of([&] { layer_.router().route(x, {.num_threads = threads_}, table_); });
    stages.plan = seconds_of([&] { plan_.build(table_, layer_.num_experts()); });
    if (x_rows_.rows() < plan_.num_rows()) {
      x_rows_.resize(plan_.num_rows(), layer_.d_in());
      y_rows_.resize(plan_.num_rows(), layer_.d_out());
    }
    stages.gather = seconds_of([&] { gather_rows<float>(x, plan_, nullptr, x_rows_, threads_); });
    stages.experts = seconds_of([&] {
      for_tiles([&](const Tile& tile, int worker) {
        layer_.experts()[static_cast<std::size_t>(tile.expert)].forward(
            x_rows_.middleRows(tile.begin, tile.rows()),
            y_rows_.middleRows(tile.begin, tile.rows()),
            workers_[static_cast<std::size_t>(worker)]);
      });
    });
    stages.combine = seconds_of(
        [&] { combine_rows<float>(y_rows_, plan_, &table_.weight, nullptr, y, threads_); });
    return stages;
  }

 private:
  template <class Body>
  void for_tiles(Body&& body) {
    const auto tiles = plan_.tiles();
    detail::parallel_for(static_cast<Index>(tiles.size()), threads_, [&](Index i, int worker) {
      body(tiles[static_cast<std::size_t>(i)], worker);
    });
  }

  const MoELayer<float>& layer_;
  int threads_;
  Router<float>::Table table_;
  DispatchPlan plan_;
  Matrix<float> x_rows_, y_rows_;
  std::vector<Expert<float>::Scratch> workers_;
};

/// runs[number] of each repetition, stage by stage.
inline Stages median_stages(const std::vector<Repetition>& repetitions,
                            const std::vector<Stages>& runs) {
  Stages result;
  for (auto stage :
       {&Stages::route, &Stages::plan, &Stages::gather, &Stages::experts, &Stages::combine}) {
    result.*stage = median_of(repetitions, [&](const Repetition& r) {
      return runs[static_cast<std::size_t>(r.number)].*stage;
    });
  }
  return result;
}

}  // namespace moe::report
