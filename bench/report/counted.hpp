// SPDX-License-Identifier: Apache-2.0
// Layers that count: MoELayer<Counting> performs its FLOPs one by one and reports them, which must
// be what moe/cost.hpp predicts for the plan that was carried out. The rule is that of cost.hpp.
#pragma once

#include "../../tests/support/counting_scalar.hpp"
#include "results.hpp"

namespace moe::report {

using testing::count_flops;
using testing::Counting;

struct CountedCase {
  std::string name;
  MoEConfig config;
  Index tokens;
};

inline std::vector<CountedCase> counted_cases() {
  const MoEConfig base{.d_model = 12, .d_ff = 20, .num_experts = 6, .top_k = 2};
  std::vector<CountedCase> cases{{"SwiGLU, top 2 of 6", base, 17}};
  const auto add = [&](std::string name, Index tokens, auto&& change) {
    cases.push_back({std::move(name), base, tokens});
    change(cases.back().config);
  };
  add("one token", 1, [](MoEConfig&) {});
  add("ragged: 3 tokens on 6 experts, some idle", 3, [](MoEConfig& c) { c.top_k = 1; });
  add("dropped: capacity of 3 rows", 40, [](MoEConfig& c) { c.capacity.rows = 3; });
  add("dropped: capacity factor 1, by probability", 33,
      [](MoEConfig& c) { c.capacity = {.factor = 1.0, .policy = DropPolicy::probability}; });
  add("Switch: top 1, ReLU, not gated", 19, [](MoEConfig& c) {
    c.top_k = 1;
    c.expert = {.activation = Activation::relu, .gated = false};
    c.router.weight.renormalise = false;
  });
  add("GELU by erf, not gated", 7,
      [](MoEConfig& c) { c.expert = {.activation = Activation::gelu_erf, .gated = false}; });
  add("ReLU squared, not gated", 7,
      [](MoEConfig& c) { c.expert = {.activation = Activation::relu_squared, .gated = false}; });
  add("GELU by tanh, gated, with biases, top 3", 11, [](MoEConfig& c) {
    c.top_k = 3;
    c.expert = {.activation = Activation::gelu_tanh, .gated = true, .bias = true};
    c.router.logits.bias = true;
  });
  add("gpt-oss routing: softmax of the chosen, biases", 23, [](MoEConfig& c) {
    c.expert.bias = true;
    c.router = {.logits = {.bias = true}, .weight = {.source = WeightSource::softmax_of_chosen}};
  });
  add("DeepSeek-V3 routing: sigmoid, selection bias, scale 2.5, shared expert", 13,
      [](MoEConfig& c) {
        c.router = {.score = Score::sigmoid, .selection = {.bias = true}, .weight = {.scale = 2.5}};
        c.shared = SharedExpertConfig{.d_ff = 9};
      });
  add("Qwen1.5-MoE: shared expert with a gate", 13, [](MoEConfig& c) {
    c.router.weight.renormalise = false;
    c.shared = SharedExpertConfig{.d_ff = 9, .output_gate = true};
  });
  add("Llama 4: weight on the input, sigmoid", 21, [](MoEConfig& c) {
    c.top_k = 1;
    c.router = {.score = Score::sigmoid, .weight = {.renormalise = false}};
    c.weight_on = WeightOn::input;
  });
  return cases;
}

inline void count_case(const CountedCase& counted, std::vector<Counted>& rows) {
  const MoEConfig& c = counted.config;
  const MoELayer<Counting> layer(c, 1);
  Matrix<Counting> x(counted.tokens, layer.d_in()), y(counted.tokens, layer.d_out());
  const detail::CounterRandom random(5, 0);
  for (Index i = 0; i < x.size(); ++i) {
    x.data()[i] = Counting(random.normal(static_cast<std::uint64_t>(i)));
  }
  const CallOptions call{.num_threads = 1};  // Counting counts its own thread
  typename MoELayer<Counting>::Tape tape;
  const Index forward = count_flops([&] { layer.forward(x, y, tape, call); });
  Matrix<Counting> dx(x.rows(), x.cols());
  auto grads = layer.zero_grads();
  const Index backward = count_flops([&] { layer.backward(x, y, tape, dx, grads); });
  const Work work = executed_work(tape.plan);
  rows.push_back({counted.name + ", forward", forward, forward_flops(c, work).total()});
  rows.push_back({counted.name + ", backward", backward, backward_flops(c, work).total()});
}

inline std::vector<Counted> count_all() {
  std::vector<Counted> rows;
  for (const CountedCase& counted : counted_cases()) {
    count_case(counted, rows);
  }
  return rows;
}

}  // namespace moe::report
