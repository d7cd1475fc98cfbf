// expect: ExpertLike.*forward\(x, y, scratch\)' (is|would be) invalid
#include <moe/moe.hpp>

struct NoForward {
  struct Scratch {};
  moe::Index d_in() const { return 4; }
  moe::Index d_out() const { return 4; }
};

using Layer = moe::MoELayer<float, moe::Router<float>, NoForward>;

int main() { Layer(moe::Router<float>(4, 1, 1, {}, 0), std::vector<NoForward>(1)); }
