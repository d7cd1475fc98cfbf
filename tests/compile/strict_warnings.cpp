// compiles
// flags: -Wall -Wextra -Wpedantic -Wconversion -Wshadow -Wold-style-cast -Wfloat-equal
// flags: -Wdouble-promotion -Wcast-qual -Wnon-virtual-dtor -Woverloaded-virtual -Werror
// GNU flags: -Wuseless-cast -Wduplicated-cond -Wlogical-op
// Clang flags: -Weverything -Wno-c++98-compat -Wno-c++98-compat-pedantic -Wno-padded
// Clang flags: -Wno-weak-vtables -Wno-switch-enum -Wno-unknown-warning-option
// Clang flags: -Wno-unsafe-buffer-usage
//
// The headers as -I, not as system headers: a user's warnings are as strict as these.
#include <moe/compiled.hpp>
#include <moe/moe.hpp>
#include <moe/reference.hpp>

namespace {

template <class Layer, moe::Real T>
void train(Layer& layer) {
  moe::Matrix<T> x(1, layer.d_in()), y(1, layer.d_out()), dy = y, dx = x;
  typename Layer::Tape tape;
  auto grads = layer.zero_grads();
  layer.forward(x, y, tape);
  const auto loss = moe::load_balancing_loss(tape.routing) + moe::importance_loss(tape.routing) +
                    moe::load_loss(tape.routing) + moe::z_loss(tape.routing);
  layer.backward(x, dy, tape, dx, grads, loss.gradient);
  layer.for_each_parameter([](const auto&, auto&, auto& gradient) { gradient.setZero(); }, grads);
}

template <class Packed>
void infer(const Packed& packed) {
  typename Packed::Scratch scratch;
  moe::Matrix<float> x(1, packed.d_in()), y(1, packed.d_out());
  packed.forward(x, y, scratch);
}

}  // namespace

int main() {
  const moe::MoEConfig config{.d_model = 4, .d_ff = 4, .num_experts = 2, .top_k = 1};
  moe::MoELayer<float> single(config, 1);
  moe::MoELayer<double> wide(config, 1);
  moe::MoELayer<moe::bf16> narrow(config, 1);
  train<moe::MoELayer<float>, float>(single);
  train<moe::MoELayer<double>, double>(wide);
  train<moe::MoELayer<moe::bf16>, moe::bf16>(narrow);
  infer(moe::pack<float>(single));
  infer(moe::pack<moe::bf16>(narrow));
  moe::compiled::MoELayer<moe::bf16> compiled(config, 1, moe::compiled::instruction_sets().back());
  train<moe::compiled::MoELayer<moe::bf16>, moe::bf16>(compiled);
  infer(moe::compiled::pack<moe::bf16>(compiled));
  const moe::Matrix<double> x = moe::Matrix<double>::Zero(1, 4);
  moe::reference::forward(wide, x);
  return moe::published_models().empty() ? 1 : 0;
}
