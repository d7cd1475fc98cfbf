// SPDX-License-Identifier: Apache-2.0
// A layer of eight experts, each token through two of them.
#include <iostream>
#include <moe/moe.hpp>

int main() {
  const moe::MoEConfig config{.d_model = 64, .d_ff = 128, .num_experts = 8, .top_k = 2};
  const moe::MoELayer<float> layer(config, /*seed=*/1);

  const moe::Matrix<float> x = moe::Matrix<float>::Random(16, 64);  // 16 tokens
  moe::Matrix<float> y(16, 64);
  moe::MoELayer<float>::Scratch scratch;  // reuse it: later calls then allocate nothing
  layer.forward(x, y, scratch);

  const auto& routing = scratch.routing;
  std::cout << "token 0 goes to experts " << routing.expert.row(0) << " with weights "
            << routing.weight.row(0) << "\n";
  return y.allFinite() ? 0 : 1;
}
