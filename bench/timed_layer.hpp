// SPDX-License-Identifier: Apache-2.0
// A layer whose parts look at the clock: the steps of a forward as the pipeline itself takes them.
#pragma once

#include <memory>
#include <moe/moe.hpp>

#include "timing.hpp"

namespace moe::bench {

/// Seconds of the steps of a forward: the router; capacity, plan and weights of the rows; the
/// experts; and what comes after them.
struct Stages {
  double route = 0, plan = 0, experts = 0, combine = 0;

  double sum() const { return route + plan + experts + combine; }
};

/// Which step has lasted since when.
class StageClock {
 public:
  void start() { watch_ = Stopwatch(); }
  /// Ends a step and begins the next.
  void end(double Stages::*step) {
    stages.*step = watch_.seconds();
    start();
  }

  Stages stages;

 private:
  Stopwatch watch_;
};

/// The router and the experts of another layer, which outlives them.
template <Real T, class RouterT>
struct TimedRouter {
  using Table = typename RouterT::Table;

  const RouterT* router;
  StageClock* clock;

  Index num_experts() const { return router->num_experts(); }
  void route(ConstMatrixRef<T> x, const CallOptions& call, Table& table) const {
    clock->start();
    router->route(x, call, table);
    clock->end(&Stages::route);
  }
};

template <Real T, class Set>
struct TimedExperts {
  using Scratch = typename Set::Scratch;

  const Set* set;
  StageClock* clock;

  Index num_experts() const { return set->num_experts(); }
  Index d_in() const { return set->d_in(); }
  Index d_out() const { return set->d_out(); }
  void forward(const ExpertInput<T>& input, MatrixRef<T> rows, Scratch& scratch,
               int threads) const {
    clock->end(&Stages::plan);
    set->forward(input, rows, scratch, threads);
    clock->end(&Stages::experts);
  }
};

/// Takes the forwards of a layer without a shared expert, which outlives it.
template <Real T, class RouterT, class E>
class TimedLayer {
 public:
  explicit TimedLayer(const MoELayer<T, RouterT, E>& layer)
      : layer_(Router{&layer.router(), clock_.get()}, Experts{&layer.experts(), clock_.get()},
               layer.options()) {}

  /// y = layer(x), and how long each step took.
  Stages forward(ConstMatrixRef<T> x, MatrixRef<T> y, const CallOptions& call) {
    layer_.forward(x, y, scratch_, call);
    clock_->end(&Stages::combine);
    return clock_->stages;
  }
  Work work() const { return executed_work(scratch_.plan); }

 private:
  using Router = TimedRouter<T, RouterT>;
  using Experts = TimedExperts<T, typename MoELayer<T, RouterT, E>::Set>;

  std::unique_ptr<StageClock> clock_ = std::make_unique<StageClock>();
  MoELayer<T, Router, Experts> layer_;
  typename MoELayer<T, Router, Experts>::Scratch scratch_;
};

}  // namespace moe::bench
