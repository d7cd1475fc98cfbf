// SPDX-License-Identifier: Apache-2.0
// The reference layer in every form of the library - MoELayer and DenseFfn, and both packed - each
// time a MoE layer and the dense layer of equal active FLOPs in turn, so that what disturbs the
// machine disturbs both. The packed dense layer is a packed layer of one expert: what it pays for
// router, plan and combine is less than 0.5 % of its time.
#pragma once

#include <map>

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
    const auto compare_packed = [&]<Storage S>(S, const char* form) {
      const auto packed = pack<S>(layer);
      compare({.form = form, .bytes = static_cast<double>(packed_bytes<S>(packed))}, packed,
              pack<S>(one_expert));
    };
    compare({.form = "unpacked float32", .bytes = sizeof(float) * expert_weights()}, layer,
            random_dense(c.d_model, width));
    compare_packed(float(), "packed float32");
    compare_packed(bf16(), "packed bfloat16");
    compare_packed(q8(), "packed q8");
    compare_packed(q4(), "packed q4");
    compare_packed(q4_k(), "packed q4_k");
    compare_packed(mxfp4(), "packed mxfp4");
    compare_packed(fp8(), "packed fp8");
    return {c, std::move(pairs_)};
  }

 private:
  double expert_weights() const {
    const MoEConfig& c = grid_.reference;
    return static_cast<double>(c.num_experts * parameters(c).expert);
  }

  /// The rows of one form, which is filled but for what is measured.
  template <class Moe, class Dense>
  void compare(Pair pair, const Moe& moe_layer, const Dense& dense_layer) {
    const MoEConfig& c = grid_.reference;
    typename Moe::Scratch moe_scratch;
    typename Dense::Scratch dense_scratch;
    pair.bits = 8 * pair.bytes / expert_weights();
    for (const Index tokens : grid_.tokens) {
      const auto x = random_tokens(tokens, c.d_model, 8);
      Matrix<float> y(tokens, c.d_model), dense_y = y;
      const auto moe = [&] { moe_layer.forward(x, y, moe_scratch, call_); };
      const auto dense = [&] { dense_layer.forward(x, dense_y, dense_scratch, call_); };
      const Repeat how{.least = 3,
                       .most = 10,
                       .seconds = 4 * grid_.seconds_per_case,
                       .patience = 0,
                       .read = true};
      const int count = how.count(seconds_of(moe) + seconds_of(dense));
      const auto rest = [&] { probes_.probe<float>(how.read); };
      const InTurn times = repeat_in_turn(count, rest, moe, dense);
      const Matrix<float>& float_y = float_y_.try_emplace(tokens, y).first->second;
      pair.tokens = tokens;
      pair.error = static_cast<double>((y - float_y).norm() / float_y.norm());
      pair.moe_seconds = times.first_seconds;
      pair.dense_seconds = times.second_seconds;
      pair.ratio = times.ratio;
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
  std::map<Index, Matrix<float>> float_y_;  // by the number of tokens: y of the first form
};

}  // namespace moe::report
