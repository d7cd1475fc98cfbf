// SPDX-License-Identifier: Apache-2.0
// Times dense and MoE layers over the grid, in the packed form that serves inference; the dense
// layer is one packed expert that every token takes. What that pays for router, plan and combine is
// about 3 % of its time at F1024 and less than 0.5 % from F8192 on. The input rotates, so that few
// tokens do not always meet the same experts.
#pragma once

#include <set>

#include "results.hpp"

namespace moe::report {

class Measurement {
 public:
  Measurement(const Grid& grid, int threads, Probes& probes)
      : grid_(grid), call_{.num_threads = threads}, probes_(probes) {
    const Index most = *std::max_element(grid.tokens.begin(), grid.tokens.end());
    x_ = random_tokens(most * inputs, grid.d_model, 7);
  }

  /// Every dense width that a layer of the grid is compared with, then every layer.
  /// progress(name) is told what comes next.
  template <class Progress>
  std::vector<Measured> run(Progress&& progress) {
    std::vector<MoEConfig> layers;
    std::set<Index> widths{grid_.active_d_ff};
    for (const Index experts : grid_.experts) {
      for (const Index top_k : grid_.top_k) {
        layers.push_back(equal_active(grid_.d_model, grid_.active_d_ff, experts, top_k));
        widths.insert(total_width(layers.back()));
      }
    }
    for (const Index width : widths) {
      const MoEConfig c = equal_active(grid_.d_model, width, 1, 1);
      const std::string name = "dense F" + std::to_string(width);
      progress(name);
      measure(c, name, true, pack<float>(random_layer(c)));
    }
    for (const MoEConfig& c : layers) {
      const std::string name =
          "MoE E" + std::to_string(c.num_experts) + " K" + std::to_string(c.top_k);
      progress(name);
      measure(c, name, false, pack<float>(random_layer(c)));
    }
    return std::move(measured_);
  }

 private:
  static constexpr Index inputs = 8;

  Repeat how() const {
    return {.least = 3,
            .most = 10,
            .seconds = grid_.seconds_per_case,
            .patience = 2 * grid_.seconds_per_case,
            .read = true};
  }

  ConstMatrixRef<float> input(Index tokens, int repetition) const {
    return x_.middleRows(repetition % inputs * tokens, tokens);
  }

  void measure(const MoEConfig& c, const std::string& name, bool dense,
               const PackedLayer<float>& packed) {
    TimedLayer timed(packed);
    for (const Index tokens : grid_.tokens) {
      Matrix<float> y(tokens, c.d_model);
      std::vector<Work> work;
      std::vector<Stages> steps;
      const auto repetitions = repeat<float>(probes_, how(), [&](int repetition) {
        steps.push_back(timed.forward(input(tokens, repetition), y, call_));
        work.push_back(timed.work());
      });
      Measured m{.layer = name, .d_ff = c.d_ff, .tokens = tokens};
      m.seconds = median_of(repetitions, &Repetition::seconds);
      m.best_seconds = std::ranges::min(repetitions, {}, &Repetition::seconds).seconds;
      m.repetitions = static_cast<int>(repetitions.size());
      add_costs(c, dense, work, m);
      if (!dense) {
        m.experts = c.num_experts;
        m.top_k = c.top_k;
        m.stages = medians(repetitions, steps);
      }
      compare(total_width(c), m);
      measured_.push_back(m);
    }
  }

  /// Of each step, over the repetitions that count.
  static Stages medians(const std::vector<Repetition>& repetitions,
                        const std::vector<Stages>& steps) {
    const auto of = [&](double Stages::*step) {
      return median_of(repetitions, [&](const Repetition& r) {
        return steps[static_cast<std::size_t>(r.number)].*step;
      });
    };
    return {of(&Stages::route), of(&Stages::plan), of(&Stages::experts), of(&Stages::combine)};
  }

  /// Parameters, FLOPs and bytes: the mean of the repetitions, whose routing differs.
  static void add_costs(const MoEConfig& c, bool dense, const std::vector<Work>& work,
                        Measured& m) {
    const ParameterCount count = parameters(c);
    const Index router = dense ? count.router : 0;  // that of a single expert does not count
    m.total_params = static_cast<double>(count.total - router);
    m.active_params = static_cast<double>(count.active - router);
    const double runs = static_cast<double>(work.size());
    for (const Work& w : work) {
      const LayerFlops flops = forward_flops(c, w);
      m.matmul_flops += (dense ? flops.experts.matmul : flops.sum().matmul) / runs;
      m.bytes += forward_bytes(c, w, sizeof(float)).total() / runs;
      m.distinct_experts += w.distinct_experts / runs;
    }
  }

  /// To the dense layer of equal total size, which was measured before.
  void compare(Index total_width, Measured& m) const {
    m.flop_ratio = m.speedup = 1.0;
    for (const Measured& dense : measured_) {
      if (dense.dense() && dense.d_ff == total_width && dense.tokens == m.tokens) {
        m.flop_ratio = dense.matmul_flops / m.matmul_flops;
        m.speedup = dense.seconds / m.seconds;
      }
    }
  }

  Grid grid_;
  CallOptions call_;
  Probes& probes_;
  Matrix<float> x_;
  std::vector<Measured> measured_;
};

}  // namespace moe::report
