// compiles
#include <moe/moe.hpp>

struct RoundRobin {
  using Table = moe::RoutingTable<float>;
  moe::Index num_experts() const { return 4; }
  void route(moe::ConstMatrixRef<float> x, const moe::CallOptions&, Table& table) const {
    table.expert.setZero(x.rows(), 1);
    table.weight.setOnes(x.rows(), 1);
  }
};

struct ForwardOnly {
  struct Scratch {};
  moe::Index d_in() const { return 4; }
  moe::Index d_out() const { return 4; }
  void forward(moe::ConstMatrixRef<float> x, moe::MatrixRef<float> y, Scratch&) const { y = x; }
};

static_assert(moe::RouterLike<RoundRobin, float>);
static_assert(moe::ExpertLike<ForwardOnly, float>);
static_assert(!moe::TrainableRouter<RoundRobin, float>);
static_assert(!moe::TrainableExpert<ForwardOnly, float>);

// An expert that cannot be trained still infers.
void infer(const moe::MoELayer<float, RoundRobin, ForwardOnly>& layer, moe::Matrix<float>& x) {
  moe::MoELayer<float, RoundRobin, ForwardOnly>::Scratch scratch;
  layer.forward(x, x, scratch);
}

int main() {}
