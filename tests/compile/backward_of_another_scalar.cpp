// expect: dy is no matrix of the layer's scalar: give it a moe::Matrix<T>
#include <moe/moe.hpp>

using Layer = moe::MoELayer<float>;

void backward(const Layer& layer, const moe::Matrix<float>& x, const moe::Matrix<double>& dy,
              moe::Matrix<float>& dx, Layer::Tape& tape, Layer::Grads& grads) {
  layer.backward(x, dy, tape, dx, grads);
}

int main() {}
