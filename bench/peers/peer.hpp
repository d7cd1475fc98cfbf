// SPDX-License-Identifier: Apache-2.0
// The face of a peer: the same layer through another library. Each peer is one source file that
// adds itself to the list, built where its library is installed.
#pragma once

#include <functional>
#include <memory>
#include <moe/moe.hpp>
#include <stdexcept>
#include <string>
#include <vector>

#include "../types.hpp"

namespace moe::bench {

class Peer {
 public:
  virtual ~Peer() = default;

  /// y (N, D) = layer(x (N, D)).
  virtual void forward(const Matrix<float>& x, Matrix<float>& y) = 0;

  /// y as in forward(), dx (N, D) and the gradients of all weights from dy (N, D).
  virtual void train(const Matrix<float>&, const Matrix<float>&, Matrix<float>&, Matrix<float>&) {
    throw std::logic_error("moe_peers: this peer does not train");
  }
  /// The gradient that the trainings so far have added up.
  virtual Matrix<float> down_gradient(Index) const { return {}; }
};

struct PeerKind {
  std::string name;
  Type type;  ///< of its weights, and of ours beside it
  bool trains;
  /// The layer, which the peer may refer to, and the number of threads.
  std::function<std::unique_ptr<Peer>(const MoELayer<float>&, int)> make;
};

inline std::vector<PeerKind>& peer_kinds() {
  static std::vector<PeerKind> kinds;
  return kinds;
}

inline bool add_peer(PeerKind kind) {
  peer_kinds().push_back(std::move(kind));
  return true;
}

/// A peer that is a library of matrix products: it takes our routing, our gather and our combine,
/// whose time counts as its own, and computes the experts.
class ProductPeer : public Peer {
 public:
  ProductPeer(const MoELayer<float>& layer, int threads) : layer_(layer), threads_(threads) {}

  void forward(const Matrix<float>& x, Matrix<float>& y) final {
    layer_.route(x, {.num_threads = threads_}, routed_);
    x_rows_.resize(plan().num_rows(), x.cols());
    y_rows_.resize(plan().num_rows(), y.cols());
    detail::for_rows(plan().num_rows(), threads_,
                     [&](Index row) { x_rows_.row(row) = x.row(plan().groups().token_of(row)); });
    compute_experts();
    gather_weights(routed_.routing.weight, plan(), row_weight_);
    combine_rows<float>(y_rows_, plan(), row_weight_, nullptr, y, threads_);
  }

 protected:
  /// y_rows = the experts of x_rows, both in expert order.
  virtual void compute_experts() = 0;

  const ExpertParams<float>& params(Index expert) const {
    return layer_.experts()[static_cast<std::size_t>(expert)].params();
  }
  const DispatchPlan& plan() const { return routed_.plan; }
  Index first_row(Index expert) const { return plan().groups().begin(expert); }

  const MoELayer<float>& layer_;
  int threads_;
  Matrix<float> x_rows_, y_rows_;

 private:
  Routed<float, Router<float>> routed_;
  std::vector<float> row_weight_;
};

/// SwiGLU: gate = silu(gate) * up.
inline void multiply_activated(MatrixRef<float> gate, ConstMatrixRef<float> up) {
  gate = gate.array() * gate.array().logistic() * up.array();
}

/// A library whose products run on one thread: a parallel loop over the experts.
class ProductLoopPeer : public ProductPeer {
 public:
  using ProductPeer::ProductPeer;

 protected:
  /// c (rows of x, rows of w) = x w^T.
  virtual void multiply(ConstMatrixRef<float> x, const Matrix<float>& w,
                        MatrixRef<float> c) const = 0;

  void compute_experts() override {
    grow_workers();
    detail::parallel_for(layer_.num_experts(), threads_, [&](Index e, int number) {
      Worker& worker = workers_[static_cast<std::size_t>(number)];
      const ExpertParams<float>& p = params(e);
      const Index rows = plan().kept(e);
      const auto x = x_rows_.middleRows(first_row(e), rows);
      MatrixRef<float> gate = worker.gate.topRows(rows), up = worker.up.topRows(rows);
      multiply(x, p.gate, gate);
      multiply(x, p.up, up);
      multiply_activated(gate, up);
      multiply(gate, p.down, y_rows_.middleRows(first_row(e), rows));
    });
  }

 private:
  struct Worker {
    GrowingMatrix<float> gate, up;
  };

  /// Room for the largest expert, so that calls of the same routing allocate nothing: ours do not.
  void grow_workers() {
    Index most = 0;
    for (Index e = 0; e < layer_.num_experts(); ++e) {
      most = std::max(most, plan().kept(e));
    }
    workers_.resize(static_cast<std::size_t>(threads_));
    for (Worker& worker : workers_) {
      worker.gate.resize(most, params(0).gate.rows());
      worker.up.resize(most, params(0).up.rows());
    }
  }

  std::vector<Worker> workers_;
};

}  // namespace moe::bench
