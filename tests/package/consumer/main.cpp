// A user's first program: one layer, three tokens.
#include <moe/moe.hpp>

int main() {
  const moe::MoEConfig config{.d_model = 8, .d_ff = 16, .num_experts = 4, .top_k = 2};
  const moe::MoELayer<float> layer(config, 1);
  moe::MoELayer<float>::Scratch scratch;
  const moe::Matrix<float> x = moe::Matrix<float>::Constant(3, 8, 0.5f);
  moe::Matrix<float> y(3, 8);
  layer.forward(x, y, scratch);
  return y.allFinite() && !y.isZero() ? 0 : 1;
}
