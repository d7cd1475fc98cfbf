// compiles
#include <moe/moe.hpp>

// The layer of a config, with its experts named as the set that they are.
using Layer = moe::MoELayer<float, moe::Router<float>, moe::FfnExperts<float>>;

Layer make(const moe::MoEConfig& config) { return Layer(config, 1); }

int main() {}
