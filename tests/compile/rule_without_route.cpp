// expect: rule.route\(params, token\)' (is|would be) invalid
#include <moe/moe.hpp>

struct NoRoute {
  using Params = moe::NoParams;
  moe::Index top_k() const { return 1; }
};
static_assert(moe::TokenRule<NoRoute, float>);

int main() {}
