// SPDX-License-Identifier: Apache-2.0
// A router of your own: hash routing (Roller et al. 2021), token ids in place of a learned gate.
// It has nothing to train, so the layer that holds it is for inference.
#include <iostream>
#include <moe/moe.hpp>
#include <stdexcept>
#include <vector>

struct HashRouter {
  using Table = moe::RoutingTable<float>;

  moe::Index experts = 0;

  moe::Index num_experts() const { return experts; }

  void route(moe::ConstMatrixRef<float> x, const moe::CallOptions& call, Table& table) const {
    if (call.tokens.ids.empty()) {
      throw std::invalid_argument("HashRouter: tokens.ids is empty, expected one for each token");
    }
    table.expert.resize(x.rows(), 1);
    table.weight.setOnes(x.rows(), 1);
    for (moe::Index token = 0; token < x.rows(); ++token) {
      const auto id = static_cast<unsigned>(call.tokens.ids[static_cast<std::size_t>(token)]);
      table.expert(token, 0) =
          static_cast<moe::ExpertId>((id * 2654435761U) % static_cast<unsigned>(experts));
    }
  }
};
// What is missing is named here, and not inside the library.
static_assert(moe::RouterLike<HashRouter, float>);

int main() {
  std::vector<moe::Expert<float>> experts;
  for (std::uint64_t seed = 0; seed < 4; ++seed) {
    experts.emplace_back(moe::Expert<float>::Sizes{32, 64, 32}, moe::ExpertConfig{}, seed);
  }
  const moe::MoELayer<float, HashRouter> layer(HashRouter{4}, std::move(experts));

  const std::vector<std::int32_t> ids = {17, 4, 17, 99, 4, 17};
  const moe::Matrix<float> x = moe::Matrix<float>::Random(6, 32);
  moe::Matrix<float> y(6, 32);
  moe::MoELayer<float, HashRouter>::Scratch scratch;
  layer.forward(x, y, scratch, {.tokens = {.ids = ids}});

  std::cout << "experts of the tokens: " << scratch.routing.expert.transpose() << "\n";
  for (moe::Index e = 0; e < layer.num_experts(); ++e) {
    std::cout << "expert " << e << " computed " << scratch.plan.kept(e) << " rows\n";
  }
  const auto& chosen = scratch.routing.expert;
  return chosen(0, 0) == chosen(2, 0) && chosen(1, 0) == chosen(4, 0) ? 0 : 1;
}
