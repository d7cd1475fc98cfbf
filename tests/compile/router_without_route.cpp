// expect: RouterLike.*route\(x, call, table\)' (is|would be) invalid
#include <moe/moe.hpp>

struct NoRoute {
  using Table = moe::RoutingTable<float>;
  moe::Index num_experts() const { return 4; }
};

using Layer = moe::MoELayer<float, NoRoute>;

int main() { Layer(NoRoute{}, {}); }
