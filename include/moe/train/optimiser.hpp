// SPDX-License-Identifier: Apache-2.0
// Optimiser<W, Rule>: one step over all tensors of a walk, in place and in parallel, by a rule for
// one number (AdamW, Sgd). Clipping by the global norm and groups of tensors are here; what a rule
// does with a gradient is in its own file.
//
//   moe::AdamW<float> adam({.decay = 0.1});
//   adam.step([&](auto&& visit) {                      // the same walk in every step
//     visit("embedding", embedding, d_embedding);      // your own tensors
//     moe::visit_trained(visit, layer, grads, "layers.0.");
//   }, {.rate = 1e-3, .clip = 1.0});
#pragma once

#include <functional>
#include <limits>
#include <utility>

#include "trained_tensors.hpp"

namespace moe::inline MOE_INSTRUCTION_SET {

/// What tensors of one kind have of their own: factors of the rate and of the decay, 0 for none.
struct ParameterGroup {
  double rate = 1.0, decay = 1.0;

  void validate() const {
    for (const double factor : {rate, decay}) {
      detail::throw_unless(std::isfinite(factor) && factor >= 0.0, "ParameterGroup: a factor is ",
                           factor, ", expected finite and at least 0");
    }
  }
};

struct StepOptions {
  double rate = 0.0;
  /// Gradients whose norm, of all together, is larger are scaled down to it. Infinite: no norm.
  double clip = std::numeric_limits<double>::infinity();
  int num_threads = 0;
};

struct StepResult {
  double gradient_norm = 0.0;  ///< before clipping; 0 if that was not asked for
  /// False if the norm is not finite: then nothing was changed, and the step is not counted. It is
  /// Inf also where the sum of squares overflows in double: of gradients in double beyond 1e154.
  bool applied = true;
};

namespace detail {

/// A constant of a step in the scalar of the optimiser. Throws std::invalid_argument if it is not
/// finite there: by a gradient of 0 it would be NaN.
template <Real W>
W constant_of_step(double value, const char* name) {
  using std::isfinite;
  const W constant = static_cast<W>(value);
  throw_unless(isfinite(constant), name, " = ", value,
               ", expected finite in the scalar of the optimiser");
  return constant;
}

}  // namespace detail

/// A Rule has a name, a Config with validate(), perhaps check_in_scalar(config) for what has rules
/// in W alone, num_moments, and prepare(config, number of the step, rate, decay factor) for the
/// constants of a step, whose update<W>(n, value, gradient, scale, moments) changes n values and
/// their moments. What prepare() throws leaves everything as it was. State, for each parameter:
/// num_moments W, and one more where the parameter has 16 bits. No allocation but in the first
/// step.
template <Real W, class Rule>
class Optimiser {
 public:
  using Config = typename Rule::Config;
  using Tensor = typename TrainedTensors<W>::Tensor;
  using GroupOf = std::function<ParameterGroup(const std::string& name)>;

  /// group_of is asked once for each tensor, and for all again if it throws. Throws
  /// std::invalid_argument if the config breaks its rules.
  explicit Optimiser(const Config& config = {}, GroupOf group_of = {})
      : config_(config), group_of_(std::move(group_of)), tensors_(Rule::num_moments) {
    config.validate();
    if constexpr (requires { Rule::check_in_scalar(config); }) {
      Rule::check_in_scalar(config);
    }
  }

  const Config& config() const { return config_; }
  /// Those that were applied.
  Index steps() const { return steps_; }

  /// parameter -= its part of a step, for all tensors of the walk. Throws std::invalid_argument as
  /// TrainedTensors::gather() says, or on a rate, clip or factor of a group out of its range, in
  /// double or in W, before anything is changed.
  template <class Walk>
  StepResult step(Walk&& walk, const StepOptions& options) {
    detail::throw_unless(std::isfinite(options.rate) && options.rate >= 0.0,
                         "optimiser: rate = ", options.rate, ", expected finite and at least 0");
    detail::throw_unless(options.clip > 0.0, "optimiser: clip = ", options.clip,
                         ", expected positive");
    const int threads = detail::num_threads(options.num_threads);
    prepare(walk);
    StepResult result;
    W scale(1);
    if (std::isfinite(options.clip)) {
      result.gradient_norm = tensors_.gradient_norm(threads);
      result.applied = std::isfinite(result.gradient_norm);
      if (!result.applied) {
        return result;
      }
      if (result.gradient_norm > options.clip) {
        scale = static_cast<W>(options.clip / result.gradient_norm);
      }
    }
    constants_.clear();
    for (const ParameterGroup& group : groups_) {
      constants_.push_back(
          Rule::prepare(config_, steps_ + 1, options.rate * group.rate, group.decay));
    }
    ++steps_;
    tensors_.for_chunks(threads, [&](Tensor& tensor, const auto& chunk) {
      W* moments[Rule::num_moments];
      for (std::size_t i = 0; i < Rule::num_moments; ++i) {
        moments[i] = tensor.moments[i].data() + chunk.begin;
      }
      constants_[chunk.tensor].update(chunk.end - chunk.begin, tensor.value + chunk.begin,
                                      tensor.gradient + chunk.begin, scale, moments);
    });
    return result;
  }

  /// Makes the state of the walk's tensors, without a step: to be read from a file, say. Throws as
  /// TrainedTensors::gather() says, or on a factor of a group out of its range.
  template <class Walk>
  void prepare(Walk&& walk) {
    tensors_.gather(walk);
    if (groups_.empty()) {
      std::vector<ParameterGroup> groups;  // group_of_ may throw
      for (const Tensor& tensor : tensors_.tensors()) {
        groups.push_back(group_of_ ? group_of_(tensor.name) : ParameterGroup{});
        groups.back().validate();
      }
      groups_ = std::move(groups);
    }
  }
  /// visit(name, matrix) for all of the state: "<tensor>.moment.0", ..., "<tensor>.main".
  template <class Visit>
  void for_each_state(Visit&& visit) {
    for (Tensor& tensor : tensors_.tensors()) {
      for (std::size_t i = 0; i < tensor.moments.size(); ++i) {
        visit(detail::joined(tensor.name, ".moment.", i), tensor.moments[i]);
      }
      if (tensor.main.size() > 0) {
        visit(tensor.name + ".main", tensor.main);
      }
    }
  }
  /// With the state of for_each_state, what a run that goes on needs. Throws std::invalid_argument
  /// for less than 0, or so many that the next ones could not be counted.
  void set_steps(Index steps) {
    detail::check_count(steps, "optimiser: steps");
    steps_ = steps;
  }

 private:
  Config config_;
  GroupOf group_of_;
  TrainedTensors<W> tensors_;
  std::vector<ParameterGroup> groups_;
  std::vector<typename Rule::Constants> constants_;
  Index steps_ = 0;
};

}  // namespace moe::inline MOE_INSTRUCTION_SET
