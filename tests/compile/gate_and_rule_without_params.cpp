// compiles
#include <moe/moe.hpp>

#include <algorithm>

// Token t goes to expert t mod 3, by a gate and a rule that both have nothing to learn.
struct HashGate {
  using Params = moe::NoParams;
  using Table = moe::GatedTable<float>;
  moe::Index d_model() const { return 8; }
  moe::Index num_experts() const { return 3; }
  void forward(const Params&, moe::ConstMatrixRef<float> x, const moe::CallOptions&,
               Table& table) const {
    table.logits.setZero(x.rows(), 3);
    for (moe::Index token = 0; token < x.rows(); ++token) {
      table.logits(token, token % 3) = 1.0F;
    }
  }
};

struct LargestLogit {
  using Params = moe::NoParams;
  moe::Index top_k() const { return 1; }
  void route(const Params&, const moe::TokenRoute<float>& token) const {
    std::copy(token.logits, token.logits + token.num_experts, token.probs);
    const auto largest = std::max_element(token.probs, token.probs + token.num_experts);
    token.expert[0] = static_cast<moe::ExpertId>(largest - token.probs);
    token.weight[0] = 1.0F;
  }
};

using HashRouter = moe::GatedRouter<float, HashGate, LargestLogit>;
static_assert(moe::RouterLike<HashRouter, float>);

void route(moe::ConstMatrixRef<float> x, HashRouter::Table& table) {
  HashRouter(HashGate{}, LargestLogit{}, {}).route(x, {}, table);
}

int main() {}
