// SPDX-License-Identifier: Apache-2.0
// Trains a layer of bfloat16 whose main weights are float. An update is often smaller than half a
// bfloat16's last place and would be lost there: so the optimiser, which sees float gradients,
// steps on float weights, and each step the layer gets them rounded (Micikevicius 2018, Mixed
// Precision Training). The same training in float is beside it.
#include <cmath>
#include <cstdio>
#include <moe/moe.hpp>
#include <vector>

template <class T>
using Layer = moe::MoELayer<T>;
template <class T>
using M = moe::Matrix<T>;

// The weights of one layer, rounded into another of the same config.
template <class From, class To>
void copy_weights(const Layer<From>& from, Layer<To>& to) {
  std::vector<M<float>> weights;
  from.for_each_parameter(
      [&](const auto&, const auto& w) { weights.push_back(w.template cast<float>()); });
  auto next = weights.begin();
  to.for_each_parameter([&](const auto&, auto& w) {
    w = (next++)->template cast<typename std::decay_t<decltype(w)>::Scalar>();
  });
}

// The loss of a forward in T, the gradients, which are float, and a step on the main weights.
template <class T>
float step(Layer<T>& layer, Layer<float>& main, const M<float>& x, const M<float>& target) {
  typename Layer<T>::Tape tape;
  auto grads = layer.zero_grads();
  const M<T> x_in = x.cast<T>();
  M<T> y(x.rows(), layer.d_out()), dx(x.rows(), layer.d_in());
  layer.forward(x_in, y, tape, {.num_threads = 1});  // a small layer: threads would only wait
  const M<float> difference = y.template cast<float>() - target;
  const M<T> dy = (difference / static_cast<float>(x.rows())).template cast<T>();
  layer.backward(x_in, dy, tape, dx, grads);
  main.for_each_parameter([](const auto&, auto& w, const auto& g) { w -= 0.05F * g; }, grads);
  copy_weights(main, layer);
  return 0.5F * difference.squaredNorm() / static_cast<float>(x.rows());
}

int main() {
  const moe::MoEConfig config{.d_model = 16, .d_ff = 32, .num_experts = 4, .top_k = 2};
  Layer<float> single(config, /*seed=*/1), main_weights(config, 1), rounded(config, 1);
  Layer<moe::bf16> layer(config, 1), alone(config, 1);
  copy_weights(main_weights, layer);
  const M<float> x = M<float>::Random(128, 16);
  const M<float> target = x.array().sin().rowwise().reverse();
  float first = 0.0F, loss = 0.0F, loss_single = 0.0F, loss_alone = 0.0F;
  std::printf("%6s %10s %10s %24s\n", "step", "float", "bfloat16", "without main weights");
  for (int i = 0; i <= 2400; ++i) {
    loss_single = step(single, single, x, target);
    loss = step(layer, main_weights, x, target);
    copy_weights(alone, rounded);  // what a step leaves in bfloat16 alone
    loss_alone = step(alone, rounded, x, target);
    first = i == 0 ? loss : first;
    if (i % 800 == 0) {
      std::printf("%6d %10.4f %10.4f %24.4f\n", i, loss_single, loss, loss_alone);
    }
  }
  return loss < 0.2F * first && std::abs(loss - loss_single) < 0.2F * loss_single ? 0 : 1;
}
