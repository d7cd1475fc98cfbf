// One unit of instruction_sets.cpp; the build compiles it once for each instruction set.
#include "instruction_sets_unit.hpp"

#include <moe/moe.hpp>

namespace {

#define MOE_TEXT_OF(x) #x
#define MOE_TEXT(x) MOE_TEXT_OF(x)

moe::Matrix<float> tokens() {
  const std::vector<float> x = unit_input();
  return Eigen::Map<const moe::Matrix<float>>(x.data(), unit_tokens, unit_config().d_model);
}

template <class Layer>
std::vector<double> forward(const Layer& layer) {
  moe::Matrix<float> y(unit_tokens, layer.d_out());
  typename Layer::Scratch scratch;
  layer.forward(tokens(), y, scratch);
  return {y.data(), y.data() + y.size()};
}

std::vector<double> backward(const moe::MoELayer<float>& layer) {
  moe::Matrix<float> y(unit_tokens, layer.d_out()), dx(unit_tokens, layer.d_in());
  moe::MoELayer<float>::Tape tape;
  auto grads = layer.zero_grads();
  layer.forward(tokens(), y, tape);
  layer.backward(tokens(), tokens(), tape, dx, grads);
  return {dx.data(), dx.data() + dx.size()};
}

}  // namespace

Unit MOE_UNIT() {
  const moe::MoELayer<float> layer(unit_config(), 1);
  return {MOE_TEXT(MOE_INSTRUCTION_SET), forward(layer), forward(moe::pack<float>(layer)),
          forward(moe::pack<moe::bf16>(layer)), backward(layer)};
}
