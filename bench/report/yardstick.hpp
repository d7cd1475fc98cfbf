// SPDX-License-Identifier: Apache-2.0
// The reference layer in every form of the library - MoELayer and DenseFfn, and both packed - each
// time a MoE layer and the dense layer of equal active FLOPs in turn, so that what disturbs the
// machine disturbs both. The packed dense layer is a packed layer of one expert: what it pays for
// router, plan and combine is less than 0.5 % of its time.
#pragma once

#include "results.hpp"

namespace moe::report {

class YardstickMeasurement {
 public:
  YardstickMeasurement(const Grid& grid, int threads, Probes& probes)
      : grid_(grid), call_{.num_threads = threads}, probes_(probes) {}

  Yardstick run() {
    const MoEConfig& c = grid_.reference;
    const Index width = active_width(c);
    const auto layer = random_layer(c);
    const auto one_expert = random_layer(equal_active(c.d_model, width, 1, 1));
    compare("unpacked float32", layer, random_dense(c.d_model, width));
    compare("packed float32", pack<float>(layer), pack<float>(one_expert));
    compare("packed bfloat16", pack<bf16>(layer), pack<bf16>(one_expert));
    return {c, std::move(pairs_)};
  }

 private:
  template <class Moe, class Dense>
  void compare(const std::string& form, const Moe& moe_layer, const Dense& dense_layer) {
    const MoEConfig& c = grid_.reference;
    typename Moe::Scratch moe_scratch;
    typename Dense::Scratch dense_scratch;
    for (const Index tokens : grid_.tokens) {
      const auto x = random_tokens(tokens, c.d_model, 8);
      Matrix<float> y(tokens, c.d_model);
      const auto moe = [&] { moe_layer.forward(x, y, moe_scratch, call_); };
      const auto dense = [&] { dense_layer.forward(x, y, dense_scratch, call_); };
      const Repeat how{3, 4 * grid_.seconds_per_case, true};
      const int count = how.count(seconds_of(moe) + seconds_of(dense));
      const auto rest = [&] { probes_.probe<float>(how.read); };
      const InTurn times = repeat_in_turn(count, rest, moe, dense);
      Pair pair{.form = form,
                .tokens = tokens,
                .moe_seconds = times.first_seconds,
                .dense_seconds = times.second_seconds,
                .ratio = times.ratio};
      const Work work = executed_work(moe_scratch.plan);
      pair.moe_gflops = 1e-9 * forward_flops(c, work).sum().matmul / pair.moe_seconds;
      pair.dense_gflops =
          1e-9 * dense_flops(c.d_model, active_width(c), tokens) / pair.dense_seconds;
      pairs_.push_back(pair);
    }
  }

  Grid grid_;
  CallOptions call_;
  Probes& probes_;
  std::vector<Pair> pairs_;
};

}  // namespace moe::report
