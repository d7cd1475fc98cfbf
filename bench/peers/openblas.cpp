// SPDX-License-Identifier: Apache-2.0
// OpenBLAS: a parallel loop over the experts, each three calls of sgemm on one thread.
#include <cblas.h>

#include "peer.hpp"

namespace moe::bench {
namespace {

/// c (rows of x, rows of w) = x w^T.
void multiply(ConstMatrixRef<float> x, const Matrix<float>& w, float* c) {
  const auto size = [](Index n) { return static_cast<blasint>(n); };
  cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, size(x.rows()), size(w.rows()),
              size(x.cols()), 1.0F, x.data(), size(x.outerStride()), w.data(), size(w.cols()), 0.0F,
              c, size(w.rows()));
}

class OpenBlasPeer : public ProductPeer {
 public:
  using ProductPeer::ProductPeer;

 private:
  struct Worker {
    Matrix<float> gate, up;
  };

  void compute_experts() override {
    const int before = openblas_get_num_threads();  // LibTorch calls the same OpenBLAS
    openblas_set_num_threads(1);
    workers_.resize(static_cast<std::size_t>(threads_));
    detail::parallel_for(layer_.num_experts(), threads_, [&](Index e, int number) {
      Worker& worker = workers_[static_cast<std::size_t>(number)];
      const ExpertParams<float>& p = params(e);
      const auto x = x_rows_.middleRows(first_row(e), plan_.kept(e));
      worker.gate.resize(x.rows(), p.gate.rows());
      worker.up.resize(x.rows(), p.up.rows());
      multiply(x, p.gate, worker.gate.data());
      multiply(x, p.up, worker.up.data());
      multiply_activated(worker.gate, worker.up);
      multiply(worker.gate, p.down, y_rows_.data() + first_row(e) * y_rows_.cols());
    });
    openblas_set_num_threads(before);
  }

  std::vector<Worker> workers_;
};

[[maybe_unused]] const bool added =
    add_peer({"OpenBLAS", false, [](const MoELayer<float>& layer, int threads) {
                return std::make_unique<OpenBlasPeer>(layer, threads);
              }});

}  // namespace
}  // namespace moe::bench
