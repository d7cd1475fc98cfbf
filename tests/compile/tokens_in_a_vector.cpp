// expect: x is no matrix of the layer's scalar: give it a moe::Matrix<T>
#include <moe/moe.hpp>

#include <vector>

void forward(const moe::MoELayer<float>& layer, const std::vector<float>& x, moe::Matrix<float>& y,
             moe::MoELayer<float>::Tape& tape) {
  layer.forward(x, y, tape);
}

int main() {}
