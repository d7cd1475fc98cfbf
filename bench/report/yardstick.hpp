// SPDX-License-Identifier: Apache-2.0
// The reference layer in every form of the library - MoELayer and DenseFfn, and both packed - each
// time a MoE layer and the dense layer of equal active FLOPs in turn, so that what disturbs the
// machine disturbs both. The packed dense layer is a packed layer of one expert: what it pays for
// router, plan and combine is less than 0.5 % of its time.
#pragma once

#include "timing.hpp"

namespace moe::report {

class YardstickMeasurement {
 public:
  YardstickMeasurement(const bench::Grid& grid, int threads, Roofs& roofs)
      : grid_(grid), call_{.num_threads = threads}, roofs_(roofs) {}

  Yardstick run() {
    const MoEConfig& c = grid_.reference;
    const Index width = bench::active_width(c);
    const auto layer = bench::random_layer(c);
    const auto one_expert = bench::random_layer(bench::equal_active(c.d_model, width, 1, 1));
    compare("unpacked float32", layer, bench::random_dense(c.d_model, width));
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
      const auto x = bench::random_tokens(tokens, c.d_model, 8);
      Matrix<float> y(tokens, c.d_model);
      std::vector<double> moe, dense;
      const auto repetitions = repeat_cold(roofs_, 4 * grid_.seconds_per_case, [&](int) {
        moe.push_back(seconds_of([&] { moe_layer.forward(x, y, moe_scratch, call_); }));
        roofs_.probe();
        dense.push_back(seconds_of([&] { dense_layer.forward(x, y, dense_scratch, call_); }));
      });
      const auto of = [](const std::vector<double>& seconds, const Repetition& r) {
        return seconds[static_cast<std::size_t>(r.number)];
      };
      Pair pair{.form = form, .tokens = tokens};
      pair.moe_seconds = median_of(repetitions, [&](const Repetition& r) { return of(moe, r); });
      pair.dense_seconds =
          median_of(repetitions, [&](const Repetition& r) { return of(dense, r); });
      pair.ratio =
          median_of(repetitions, [&](const Repetition& r) { return of(dense, r) / of(moe, r); });
      const Work work = executed_work(moe_scratch.plan);
      pair.moe_gflops =
          1e-9 * static_cast<double>(forward_flops(c, work).sum().matmul) / pair.moe_seconds;
      pair.dense_gflops =
          1e-9 * bench::dense_flops(c.d_model, bench::active_width(c), tokens) / pair.dense_seconds;
      pairs_.push_back(pair);
    }
  }

  bench::Grid grid_;
  CallOptions call_;
  Roofs& roofs_;
  std::vector<Pair> pairs_;
};

}  // namespace moe::report
