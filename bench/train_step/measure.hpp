// SPDX-License-Identifier: Apache-2.0
// Times a step of ours between probes of the roofs, and in turn with a peer's; then AdamW alone
// against how fast memory is read.
#pragma once

#include "../probes.hpp"
#include "check.hpp"

namespace moe::bench {

/// A step of ours, and a peer's right behind it.
struct StepRun {
  double seconds, gflops;
  double tile_share;  ///< of the register tile, on operands in the first cache
  StepParts parts;
  double peer_seconds = 0, ratio = 0;  ///< 0 without LibTorch
};

/// AdamW without the norm.
struct UpdateRun {
  double seconds, gbs;
  double read_share;  ///< of the rate at which memory is read
};

struct Row {
  TaskShape shape;
  std::vector<StepRun> steps;
  std::vector<UpdateRun> updates;

  /// The median of a figure.
  template <class Figure>
  double of_steps(Figure figure) const {
    return median_of(steps, figure);
  }
  template <class Figure>
  double of_updates(Figure figure) const {
    return median_of(updates, figure);
  }
  double part(double StepParts::*which) const {
    return of_steps([&](const StepRun& run) { return run.parts.*which / run.parts.sum(); });
  }
};

/// FLOPs of the matrix products of a step.
inline double step_flops(const MoEConfig& c, const Work& work) {
  return (forward_flops(c, work).sum() + backward_flops(c, work).sum()).matmul;
}

/// Three numbers read and written, and the gradient read.
inline double update_bytes(const MoEConfig& c) {
  return 7.0 * sizeof(float) * static_cast<double>(parameters(c).total);
}

class StepMeasurement {
 public:
  StepMeasurement(const TaskShape& shape, int threads, Probes& probes)
      : shape_(shape),
        probes_(probes),
        task_(make_task<float>(shape)),
        ours_(task_, threads),
        peer_(make_peer_step<float> ? make_peer_step<float>(task_, threads) : nullptr) {
    check_first_step();
  }

  Row measure(int repetitions) {
    Row row{.shape = shape_, .steps = {}, .updates = {}};
    for (int i = 0; i < repetitions; ++i) {
      row.steps.push_back(run_step());
    }
    for (int i = 0; i < repetitions; ++i) {
      row.updates.push_back(run_update());
    }
    return row;
  }

 private:
  static constexpr double no_clip = std::numeric_limits<double>::infinity();

  /// Also grows all memory.
  void check_first_step() {
    const double loss = ours_.step().loss;
    if (peer_ && !(relative_difference(loss, peer_->step().loss) <= 1e-4)) {
      throw std::runtime_error("moe_train_step: " + shape_.style +
                               ": the loss of the first step differs");
    }
  }

  Probe probe() { return probes_.probe<float>(true, smoke() ? 0.0 : 0.25); }

  StepRun run_step() {
    const Probe before = probe();
    const double seconds = seconds_of([&] { ours_.step(); });
    const double tile = mean(before, probe()).tile;
    const double flops = step_flops(shape_.config, ours_.work()) / seconds;
    StepRun run{.seconds = seconds,
                .gflops = 1e-9 * flops,
                .tile_share = flops / tile,
                .parts = ours_.parts()};
    if (peer_) {
      run.peer_seconds = seconds_of([&] { peer_->step(); });
      run.ratio = run.peer_seconds / seconds;
    }
    return run;
  }

  UpdateRun run_update() {
    const Probe before = probes_.probe<float>(true);
    const double seconds = seconds_of([&] { ours_.update(no_clip); });
    const double read = mean(before, probes_.probe<float>(true)).read;
    const double rate = update_bytes(shape_.config) / seconds;
    return {seconds, 1e-9 * rate, rate / read};
  }

  TaskShape shape_;
  Probes& probes_;
  Task<float> task_;
  OurStep<float> ours_;
  std::unique_ptr<PeerStep> peer_;
};

}  // namespace moe::bench
