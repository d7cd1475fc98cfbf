// expect: (TrainableExpert<ExpertIn<NoBackward|of 'TrainableExpert<)
#include <moe/moe.hpp>

struct NoBackward {
  struct Scratch {};
  struct Tape {};
  struct Params {
    template <class Visit, class... P>
    static void for_each(Visit&&, P&...) {}
  };
  Params own;
  moe::Index d_in() const { return 4; }
  moe::Index d_out() const { return 4; }
  Params& params() { return own; }
  const Params& params() const { return own; }
  void forward(moe::ConstMatrixRef<float> x, moe::MatrixRef<float> y, Scratch&) const { y = x; }
  void forward(moe::ConstMatrixRef<float> x, moe::MatrixRef<float> y, Tape&) const { y = x; }
};

using Layer = moe::MoELayer<float, moe::Router<float>, NoBackward>;

void train(const Layer& layer, moe::Matrix<float>& x, moe::Matrix<float>& y, Layer::Tape& tape,
           Layer::Grads& grads) {
  layer.backward(x, y, tape, x, grads);
}

int main() {}
