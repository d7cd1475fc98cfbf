// expect: RoutesTokensIn<.*bfloat16.*route\(x, call, table\)' (is|would be) invalid
#include <moe/moe.hpp>

using Layer = moe::MoELayer<float, moe::Router<moe::bf16>>;

int main() { Layer({}, 1); }
