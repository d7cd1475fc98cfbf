// Second of two translation units with all of moe.
#include <moe/moe.hpp>

moe::Matrix<float> forward_elsewhere(const moe::Matrix<float>& x);

moe::Matrix<float> forward_elsewhere(const moe::Matrix<float>& x) {
  const moe::MoEConfig config{.d_model = 8, .d_ff = 16, .num_experts = 4, .top_k = 2};
  const moe::MoELayer<float> layer(config, 1);
  moe::MoELayer<float>::Scratch scratch;
  moe::Matrix<float> y(x.rows(), x.cols());
  layer.forward(x, y, scratch);
  return y;
}
