// expect: GateLike.*forward\(params, x, call, table\)' (is|would be) invalid
#include <moe/moe.hpp>

struct NoForward {
  using Params = moe::NoParams;
  using Table = moe::GatedTable<float>;
  moe::Index d_model() const { return 2; }
  moe::Index num_experts() const { return 2; }
};

using Router = moe::GatedRouter<float, NoForward, moe::TopK<float>>;

int main() { Router(NoForward{}, moe::TopK<float>(2, 1, {}), {}); }
