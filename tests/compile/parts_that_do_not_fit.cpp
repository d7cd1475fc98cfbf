// compiles
#include <moe/moe.hpp>

#include <mutex>

// Concepts refuse what would fail inside our headers.
struct MemoryThatCannotMove {
  struct Scratch {
    std::mutex mutex;
  };
  moe::Index d_in() const { return 4; }
  moe::Index d_out() const { return 4; }
  void forward(moe::ConstMatrixRef<float> x, moe::MatrixRef<float> y, Scratch&) const { y = x; }
};
static_assert(!moe::ExpertLike<MemoryThatCannotMove, float>);

struct TableOfASize {
  struct Table : moe::RoutingTable<float> {
    explicit Table(moe::Index tokens) { expert.resize(tokens, 1); }
  };
  moe::Index num_experts() const { return 2; }
  void route(moe::ConstMatrixRef<float>, const moe::CallOptions&, Table&) const {}
};
static_assert(!moe::RouterLike<TableOfASize, float>);

template <class Layer>
concept VisitsParameters = requires(const Layer& layer) {
  layer.for_each_parameter([](const std::string&, const auto&) {});
};
static_assert(VisitsParameters<moe::MoELayer<float>> && !VisitsParameters<moe::PackedLayer<float>>);

// A rule of both kinds is one of tokens.
struct OfBothKinds {
  using Params = moe::NoParams;
  moe::Index top_k() const { return 1; }
  void route(const Params&, const moe::TokenRoute<float>& token) const { token.expert[0] = 0; }
  void route(const Params&, const moe::CallOptions&, moe::GatedTable<float>&) const {}
};
using Router = moe::GatedRouter<float, moe::LinearGate<float>, OfBothKinds>;

void route(const Router& router, moe::ConstMatrixRef<float> x, Router::Table& table) {
  router.route(x, {}, table);
}

int main() {}
