// expect: give it, or the gate and rule of a GatedRouter, a member cast<T>\(\)
#include <moe/moe.hpp>

// Takes tokens in bfloat16 and offers no cast: a packed layer has them in float.
struct OwnGate {
  using Params = moe::NoParams;
  using Table = moe::GatedTable<float>;
  moe::Index d_model() const { return 4; }
  moe::Index num_experts() const { return 4; }
  void forward(const Params&, moe::ConstMatrixRef<moe::bf16> x, const moe::CallOptions&,
               Table& table) const {
    table.logits = x.cast<float>();
  }
};

using Router = moe::GatedRouter<moe::bf16, OwnGate, moe::TopK<float>>;

auto packed(const moe::MoELayer<moe::bf16, Router>& layer) { return moe::pack<moe::bf16>(layer); }

int main() {}
