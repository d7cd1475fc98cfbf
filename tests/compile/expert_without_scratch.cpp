// expect: no type named 'Scratch' in '(struct )?NoMemory'
#include <moe/moe.hpp>

struct NoMemory {
  moe::Index d_in() const { return 4; }
  moe::Index d_out() const { return 4; }
  void forward(moe::ConstMatrixRef<float> x, moe::MatrixRef<float> y, int&) const { y = x; }
};

static_assert(moe::ExpertLike<NoMemory, float>);

int main() {}
