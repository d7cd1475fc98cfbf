// expect: ExpertLike.*no type named 'Scratch'|no type named 'Scratch'.*ExpertLike
#include <moe/moe.hpp>

struct NoMemory {
  moe::Index d_in() const { return 4; }
  moe::Index d_out() const { return 4; }
  void forward(moe::ConstMatrixRef<float> x, moe::MatrixRef<float> y, int&) const { y = x; }
};

using Layer = moe::MoELayer<float, moe::Router<float>, NoMemory>;

int main() { Layer({.d_model = 4, .d_ff = 4, .num_experts = 2, .top_k = 1}, 1); }
