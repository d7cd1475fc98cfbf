// expect: experts are offloaded and saved in a storage whose panels are the same bytes
#include <moe/moe.hpp>

using Layer = moe::MoELayer<float, moe::Router<float>, moe::OffloadedExperts<float>>;

int main() { static_cast<void>(sizeof(Layer)); }
