// SPDX-License-Identifier: Apache-2.0
// Eigen: a parallel loop over the experts, each three products of matrices.
#include "peer.hpp"

namespace moe::bench {
namespace {

class EigenPeer : public ProductPeer {
 public:
  using ProductPeer::ProductPeer;

 private:
  struct Worker {
    Matrix<float> gate, up;
  };

  void compute_experts() override {
    workers_.resize(static_cast<std::size_t>(threads_));
    detail::parallel_for(layer_.num_experts(), threads_, [&](Index e, int number) {
      Worker& worker = workers_[static_cast<std::size_t>(number)];
      const auto x = x_rows_.middleRows(first_row(e), plan_.kept(e));
      worker.gate.noalias() = x * params(e).gate.transpose();
      worker.up.noalias() = x * params(e).up.transpose();
      multiply_activated(worker.gate, worker.up);
      y_rows_.middleRows(first_row(e), plan_.kept(e)).noalias() =
          worker.gate * params(e).down.transpose();
    });
  }

  std::vector<Worker> workers_;
};

[[maybe_unused]] const bool added =
    add_peer({"Eigen", false, [](const MoELayer<float>& layer, int threads) {
                return std::make_unique<EigenPeer>(layer, threads);
              }});

}  // namespace
}  // namespace moe::bench
