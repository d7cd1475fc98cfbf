// expect: x is no matrix of the layer's scalar: give it a moe::Matrix<T>
#include <moe/moe.hpp>

void forward(const moe::MoELayer<float>& layer, const moe::Matrix<double>& x, moe::Matrix<float>& y,
             moe::MoELayer<float>::Scratch& scratch) {
  layer.forward(x, y, scratch);
}

int main() {}
