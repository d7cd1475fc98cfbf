// SPDX-License-Identifier: Apache-2.0
// A training step with this library: forward, losses, backward, clipping and AdamW, and how long
// each of them took.
#pragma once

#include "../timing.hpp"
#include "task.hpp"

namespace moe::bench {

/// Seconds of the parts of a step.
struct StepParts {
  double forward = 0, losses = 0, zero = 0, backward = 0, optimiser = 0;

  double sum() const { return forward + losses + zero + backward + optimiser; }
};

template <Real T>
class OurStep {
 public:
  OurStep(const Task<T>& task, int threads)
      : task_(task),
        call_{.num_threads = threads},
        layer_(task.layer),
        grads_(layer_.zero_grads()),
        adam_(task.adam),
        y_(task.target.rows(), task.target.cols()),
        dy_(y_.rows(), y_.cols()),
        dx_(task.x.rows(), task.x.cols()),
        square_(static_cast<std::size_t>(y_.rows())) {}

  StepFigures step() {
    StepFigures figures;
    parts_.forward = seconds_of([&] { layer_.forward(task_.x, y_, tape_, call_); });
    parts_.losses = seconds_of([&] { figures.loss = compute_losses(); });
    parts_.zero = seconds_of([&] { clear_gradients(); });
    parts_.backward =
        seconds_of([&] { layer_.backward(task_.x, dy_, tape_, dx_, grads_, auxiliary_.gradient); });
    parts_.optimiser = seconds_of([&] { figures.gradient_norm = update(task_.clip); });
    return figures;
  }

  /// The norm of the gradients of the last step, if it is clipped, and AdamW.
  double update(double clip) {
    const auto walk = [&](auto&& visit) { visit_trained(visit, layer_, grads_); };
    return adam_.step(walk, {.rate = task_.rate, .clip = clip, .num_threads = call_.num_threads})
        .gradient_norm;
  }

  /// Of the last step.
  const StepParts& parts() const { return parts_; }
  Work work() const { return executed_work(tape_.plan); }

 private:
  double compute_losses() {
    load_balancing_loss(tape_.routing, {}, auxiliary_, call_.num_threads);
    z_loss(tape_.routing, {}, z_, call_.num_threads);
    auxiliary_ *= static_cast<Wide<T>>(task_.balance);
    auxiliary_ += z_ *= static_cast<Wide<T>>(task_.z);
    return regression() + static_cast<double>(auxiliary_.value);
  }

  /// The mean square, and its gradient in dy.
  double regression() {
    const double share = 1.0 / static_cast<double>(y_.size());
    detail::for_rows(y_.rows(), call_.num_threads, [&](Index row) {
      dy_.row(row) = y_.row(row) - task_.target.row(row);
      square_[static_cast<std::size_t>(row)] = static_cast<double>(dy_.row(row).squaredNorm());
      dy_.row(row) *= T(2.0 * share);
    });
    double sum = 0;
    for (const double square : square_) {
      sum += square;
    }
    return share * sum;
  }

  void clear_gradients() {
    layer_.for_each_parameter(
        [&](const ParameterName&, auto&, auto& gradient) {
          detail::for_rows(gradient.rows(), call_.num_threads,
                           [&](Index row) { gradient.row(row).setZero(); });
        },
        grads_);
  }

  const Task<T>& task_;
  CallOptions call_;
  MoELayer<T> layer_;
  typename MoELayer<T>::Grads grads_;
  typename MoELayer<T>::Tape tape_;
  AdamW<Wide<T>> adam_;
  RoutingLoss<Wide<T>> auxiliary_, z_;
  Matrix<T> y_, dy_, dx_;
  std::vector<double> square_;  // of each token
  StepParts parts_;
};

}  // namespace moe::bench
