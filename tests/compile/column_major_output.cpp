// expect: y is no row-major matrix of the layer's scalar that can be written
#include <moe/moe.hpp>

void forward(const moe::MoELayer<float>& layer, const moe::Matrix<float>& x, Eigen::MatrixXf& y,
             moe::MoELayer<float>::Scratch& scratch) {
  layer.forward(x, y, scratch);
}

int main() {}
