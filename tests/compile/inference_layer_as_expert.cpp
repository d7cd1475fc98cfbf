// compiles
#include <moe/moe.hpp>

// A layer that cannot train, as a packed one, is an expert that infers.
using Inner = moe::PackedLayer<float>;
using Layer = moe::MoELayer<float, moe::Router<float>, Inner>;

static_assert(moe::ExpertLike<Inner, float>);
static_assert(!moe::TrainableExpert<Inner, float>);

void infer(const Layer& layer, moe::Matrix<float>& x) {
  Layer::Scratch scratch;
  layer.forward(x, x, scratch);
}

int main() {}
