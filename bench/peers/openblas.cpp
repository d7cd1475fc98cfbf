// SPDX-License-Identifier: Apache-2.0
// OpenBLAS: calls of sgemm, each on one thread.
#include <cblas.h>

#include "peer.hpp"

namespace moe::bench {
namespace {

class OpenBlasPeer : public ProductLoopPeer {
 public:
  using ProductLoopPeer::ProductLoopPeer;

 private:
  void multiply(ConstMatrixRef<float> x, const Matrix<float>& w,
                MatrixRef<float> c) const override {
    const auto size = [](Index n) { return static_cast<blasint>(n); };
    cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, size(x.rows()), size(w.rows()),
                size(x.cols()), 1.0F, x.data(), size(x.outerStride()), w.data(), size(w.cols()),
                0.0F, c.data(), size(c.outerStride()));
  }

  void compute_experts() override {
    const int before = openblas_get_num_threads();  // LibTorch calls the same OpenBLAS
    openblas_set_num_threads(1);
    ProductLoopPeer::compute_experts();
    openblas_set_num_threads(before);
  }
};

[[maybe_unused]] const bool added =
    add_peer({"OpenBLAS", Type::f32, false, [](const MoELayer<float>& layer, int threads) {
                return std::make_unique<OpenBlasPeer>(layer, threads);
              }});

}  // namespace
}  // namespace moe::bench
