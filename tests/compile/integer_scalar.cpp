// expect: ('int' does not satisfy 'Real'|satisfaction of 'Real<T>' \[with T = int\])
#include <moe/moe.hpp>

using Layer = moe::MoELayer<int>;

int main() { Layer({.d_model = 4, .d_ff = 4, .num_experts = 2, .top_k = 1}, 0); }
