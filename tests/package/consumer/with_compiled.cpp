// A program that is shipped: it compiles no layer, and computes with what the processor has.
#include <moe/compiled.hpp>

int main() {
  const moe::MoEConfig config{.d_model = 8, .d_ff = 16, .num_experts = 4, .top_k = 2};
  const moe::Matrix<float> x = moe::Matrix<float>::Constant(3, 8, 0.5f);
  moe::Matrix<float> first(3, 8), y(3, 8);
  for (const auto set : moe::compiled::instruction_sets()) {
    const moe::compiled::MoELayer<float> layer(config, 1, set);
    const auto packed = moe::compiled::pack<float>(layer);
    moe::compiled::PackedLayer<float>::Scratch scratch;
    packed.forward(x, y, scratch);
    if (set == moe::compiled::instruction_sets().front()) {
      first = y;
    }
    if (!y.allFinite() || y.isZero() || !y.isApprox(first)) {
      return 1;
    }
  }
}
