// SPDX-License-Identifier: Apache-2.0
// Trains a layer on a task of four pieces: in each quadrant of its first two inputs y is another
// linear map of x. Plain SGD; the load-balancing loss keeps all experts at work.
#include <cstdio>
#include <moe/moe.hpp>
#include <random>

using Matrix = moe::Matrix<float>;

struct Task {
  std::mt19937 random{7};
  Matrix maps[4];

  Task() {
    for (Matrix& map : maps) map = normal(4, 8) / 2.0F;
  }
  Matrix normal(moe::Index rows, moe::Index cols) {
    std::normal_distribution<float> draw;
    return Matrix::NullaryExpr(rows, cols, [&] { return draw(random); });
  }
  Matrix draw_inputs(moe::Index tokens) {
    Matrix x = normal(tokens, 8);
    x.col(7).setConstant(3.0F);  // tells the tokens nothing, and the router to favour some experts
    return x;
  }
  Matrix answer(const Matrix& x) const {
    Matrix y(x.rows(), 4);
    for (moe::Index t = 0; t < x.rows(); ++t) {
      const int quadrant = (x(t, 0) > 0.0F ? 2 : 0) + (x(t, 1) > 0.0F ? 1 : 0);
      y.row(t) = x.row(t) * maps[quadrant].transpose();
    }
    return y;
  }
};

int main() {
  constexpr moe::Index tokens = 128, experts = 4;
  moe::MoELayer<float> layer(
      {.d_model = 8, .d_ff = 32, .num_experts = experts, .top_k = 2, .d_out = 4}, /*seed=*/2);
  moe::MoELayer<float>::Tape tape;
  auto grads = layer.zero_grads();
  Task task;
  Matrix y(tokens, 4), dx(tokens, 8);
  float first = 0.0F, loss = 0.0F;
  moe::Index busiest = 0, idlest = 0;

  std::printf("%6s %8s %8s   tokens per expert\n", "step", "loss", "aux");
  for (int step = 0; step <= 400; ++step) {
    const Matrix x = task.draw_inputs(tokens);
    layer.forward(x, y, tape, {.num_threads = 1});  // a small layer: threads would only wait
    const Matrix difference = y - task.answer(x);
    const Matrix dy = difference / static_cast<float>(tokens);
    loss = 0.5F * difference.squaredNorm() / static_cast<float>(tokens);
    const auto aux = moe::load_balancing_loss(tape.routing);  // 1 when balanced

    layer.for_each_parameter([](const auto&, auto&, auto& grad) { grad.setZero(); }, grads);
    layer.backward(x, dy, tape, dx, grads, (0.5F * aux).gradient);
    layer.for_each_parameter([](const auto&, auto& p, const auto& g) { p -= 0.1F * g; }, grads);

    if (step % 50 == 0) {
      first = step == 0 ? loss : first;
      std::printf("%6d %8.4f %8.4f  ", step, loss, aux.value);
      busiest = 0, idlest = tokens;
      for (moe::Index e = 0; e < experts; ++e) {
        const moe::Index count = tape.plan.kept(e);
        busiest = std::max(busiest, count), idlest = std::min(idlest, count);
        std::printf(" %4d", static_cast<int>(count));
      }
      std::printf("\n");
    }
  }
  return loss < 0.2F * first && 2 * busiest < 3 * idlest ? 0 : 1;
}
