// expect: RoutingTable<double>.* is not a base|Router<float>, double>' evaluated to false
#include <moe/moe.hpp>

using Layer = moe::MoELayer<double, moe::Router<float>>;

int main() { Layer({}, 1); }
