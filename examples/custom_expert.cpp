// SPDX-License-Identifier: Apache-2.0
// An expert of your own that trains: y = tanh(x W^T). It needs sizes, parameters with their list
// of tensors, memory for forward and for backward, and three functions.
#include <iostream>
#include <moe/moe.hpp>

class TanhExpert {
 public:
  using M = moe::Matrix<float>;
  using In = moe::ConstMatrixRef<float>;
  using Out = moe::MatrixRef<float>;

  struct Params {
    M w;  // (D_out, D_in)
    template <class Visit, class... P>
    static void for_each(Visit&& visit, P&... p) {
      visit(std::string_view("w"), p.w...);
    }
  };
  struct Scratch {};  // forward needs no memory
  struct Tape {
    M y, dz;  // the output of some rows, and the gradient before the tanh
  };

  explicit TanhExpert(moe::Index width) { params_.w = 0.3F * M::Random(width, width); }

  moe::Index d_in() const { return params_.w.cols(); }
  moe::Index d_out() const { return params_.w.rows(); }
  Params& params() { return params_; }
  const Params& params() const { return params_; }

  // Eigen's products are quick to write; but how they round a row depends on the other rows, which
  // moe::kernels::gemm does not.
  void forward(In x, Out y, Scratch&) const {
    y.noalias() = x * params_.w.transpose();
    y = y.array().tanh();
  }
  void forward(In x, Out y, Tape& tape) const {
    Scratch scratch;
    forward(x, y, scratch);
    tape.y = y;
  }
  void backward(In x, In dy, Tape& tape, Out dx, Params& grads) const {  // dx =, grads +=
    tape.dz = dy.array() * (1.0F - tape.y.array().square());
    dx.noalias() = tape.dz * params_.w;
    grads.w.noalias() += tape.dz.transpose() * x;
  }

 private:
  Params params_;
};
static_assert(moe::TrainableExpert<TanhExpert, float>);  // names what is missing

int main() {
  using Layer = moe::MoELayer<float, moe::Router<float>, TanhExpert>;
  Layer layer(moe::Router<float>(16, 4, 2, {}, /*seed=*/1),
              {TanhExpert(16), TanhExpert(16), TanhExpert(16), TanhExpert(16)});
  const moe::Matrix<float> x = moe::Matrix<float>::Random(32, 16);
  const moe::Matrix<float> target = 0.5F * x.rowwise().reverse();
  moe::Matrix<float> y(32, 16), dx(32, 16);
  Layer::Tape tape;
  float first = 0.0F, loss = 0.0F;
  for (int step = 0; step < 200; ++step) {
    layer.forward(x, y, tape, {.num_threads = 1});  // a small layer: threads would only wait
    const moe::Matrix<float> dy = y - target;
    loss = 0.5F * dy.squaredNorm();
    first = step == 0 ? loss : first;
    Layer::Grads grads = layer.zero_grads();
    layer.backward(x, dy, tape, dx, grads);
    layer.for_each_parameter([](const auto&, auto& p, const auto& g) { p -= 0.05F * g; }, grads);
  }
  std::cout << "loss " << first << " -> " << loss << "\n";
  return loss < 0.2F * first ? 0 : 1;
}
