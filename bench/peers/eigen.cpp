// SPDX-License-Identifier: Apache-2.0
// Eigen: products of matrices.
#include "peer.hpp"

namespace moe::bench {
namespace {

class EigenPeer : public ProductLoopPeer {
 public:
  using ProductLoopPeer::ProductLoopPeer;

 private:
  void multiply(ConstMatrixRef<float> x, const Matrix<float>& w,
                MatrixRef<float> c) const override {
    c.noalias() = x * w.transpose();
  }
};

[[maybe_unused]] const bool added =
    add_peer({"Eigen", Type::f32, false, [](const MoELayer<float>& layer, int threads) {
                return std::make_unique<EigenPeer>(layer, threads);
              }});

}  // namespace
}  // namespace moe::bench
