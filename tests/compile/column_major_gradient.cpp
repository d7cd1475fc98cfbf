// expect: dx is no row-major matrix of the layer's scalar that can be written
#include <moe/moe.hpp>

using Layer = moe::MoELayer<float>;

void backward(const Layer& layer, const moe::Matrix<float>& x, const moe::Matrix<float>& dy,
              Eigen::MatrixXf& dx, Layer::Tape& tape, Layer::Grads& grads) {
  layer.backward(x, dy, tape, dx, grads);
}

int main() {}
