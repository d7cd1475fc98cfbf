// SPDX-License-Identifier: Apache-2.0
// Before anything is timed: 20 steps in double by both libraries, which have to give the same
// losses and gradient norms.
#pragma once

#include <cstdio>
#include <stdexcept>

#include "our_step.hpp"

namespace moe::bench {

/// Small enough to be checked before every measurement; the capacity drops a part of the choices.
inline std::vector<TaskShape> checked_tasks() {
  return {{"mixtral", mixtral_style(32, 64, 8), 200}, {"switch", switch_style(32, 64, 8), 200}};
}

/// How far two losses or norms are apart; not a number if one of them is none.
inline double relative_difference(double a, double b) {
  return std::abs(a - b) / std::max(std::abs(a), std::abs(b));
}

/// Throws std::runtime_error where the curves part, or the task does not test what it should.
inline void check_curve(const TaskShape& shape, int threads) {
  constexpr int steps = 20;
  constexpr double tolerance = 1e-9;
  const Task<double> task = make_task<double>(shape);
  OurStep<double> ours(task, threads);
  const std::unique_ptr<PeerStep> peer = make_peer_step<double>(task, threads);
  double most = 0, first = 0, last = 0;
  int clipped = 0;
  for (int number = 1; number <= steps; ++number) {
    const StepFigures a = ours.step(), b = peer->step();
    const double loss = relative_difference(a.loss, b.loss);
    const double norm = relative_difference(a.gradient_norm, b.gradient_norm);
    if (!(loss <= tolerance) || !(norm <= tolerance)) {
      throw std::runtime_error(detail::joined(
          "moe_train_step: ", shape.style, ": step ", number, " differs from LibTorch's by ", loss,
          " in the loss and ", norm, " in the gradient's norm, relative to them"));
    }
    most = std::max({most, loss, norm});
    clipped += a.gradient_norm > task.clip ? 1 : 0;
    first = number == 1 ? a.loss : first;
    last = a.loss;
  }
  const Index choices = shape.tokens * shape.config.top_k, rows = ours.work().rows;
  std::printf(
      "%-8s %d steps as LibTorch: loss %.6f to %.6f, difference at most %.1e, %d clipped, "
      "%td of %td choices dropped in the last\n",
      shape.style.c_str(), steps, first, last, most, clipped, choices - rows, choices);
  std::fflush(stdout);
  if (clipped == 0 || (shape.config.capacity.limited() && rows == choices)) {
    throw std::runtime_error("moe_train_step: " + shape.style + " clips or drops nothing");
  }
}

}  // namespace moe::bench
