// SPDX-License-Identifier: Apache-2.0
// Our layer and a peer's on the same input: first that they agree, then their times in turn, so
// that what disturbs the machine disturbs both.
#pragma once

#include <nlohmann/json.hpp>
#include <thread>

#include "../repeat.hpp"
#include "../shapes.hpp"
#include "peer.hpp"

namespace moe::bench {

struct Comparison {
  std::string peer;
  Type type;
  std::string shape;
  bool train;
  Index tokens;
  InTurn times = {};  ///< ours, then the peer's
  double our_gflops = 0;

  std::string pass() const { return train ? "train" : "forward"; }
  std::string name() const {
    return peer + '/' + bench::name(type) + '/' + pass() + '/' + shape + '/' +
           std::to_string(tokens);
  }
};

inline nlohmann::ordered_json to_json(const Comparison& c) {
  return {{"peer", c.peer},
          {"type", name(c.type)},
          {"pass", c.pass()},
          {"shape", c.shape},
          {"tokens", c.tokens},
          {"peer_seconds", c.times.second_seconds},
          {"our_seconds", c.times.first_seconds},
          {"our_gflops", c.our_gflops},
          {"ratio", c.times.ratio}};
}

/// How far two layers may be apart that round the same weights, each in its own way.
inline float tolerance(Type type) {
  return type == Type::f32 ? 1e-4F : type == Type::q8 ? 0.03F : 0.3F;
}

/// Nearly every row agrees: where two logits are all but equal, a peer that routes by itself may
/// choose the other expert.
inline void expect_equal(const Matrix<float>& ours, const Matrix<float>& peers, const Comparison& c,
                         const char* what) {
  Index different = 0;
  for (Index row = 0; row < ours.rows(); ++row) {
    const float error = (ours.row(row) - peers.row(row)).norm();
    different += error <= tolerance(c.type) * ours.row(row).norm() ? 0 : 1;
  }
  if (ours.rows() != peers.rows() || 500 * different > ours.rows()) {
    throw std::runtime_error("moe_peers: " + c.name() + ": " + what + " differs in " +
                             std::to_string(different) + " rows");
  }
}

/// The threads of whatever ran before go to sleep.
inline void rest() { std::this_thread::sleep_for(std::chrono::milliseconds(smoke() ? 1 : 50)); }

class Subject {
 public:
  Subject(const MoEConfig& config, int threads)
      : config_(config), call_{.num_threads = threads}, layer_(random_layer(config)) {}

  const MoELayer<float>& layer() const { return layer_; }

  /// Fills the figures of c.
  void compare(Peer& peer, int repetitions, Comparison& c) {
    // Few tokens change, so that their experts come from memory.
    const std::uint64_t inputs = c.train || c.tokens > 16 ? 1 : 16;
    x_.clear();
    for (std::uint64_t i = 0; i < inputs; ++i) {
      x_.push_back(random_tokens(c.tokens, config_.d_model, 7 + i));
    }
    y_.resize(c.tokens, config_.d_model);
    if (c.train) {
      compare_train(peer, repetitions, c);
    } else {
      with_storage(c.type, [&]<Storage S>(S) {
        if constexpr (std::same_as<Wide<S>, float>) {
          compare_forward<S>(peer, repetitions, c);
        }
      });
    }
  }

 private:
  template <Storage S>
  void compare_forward(Peer& peer, int repetitions, Comparison& c) {
    const PackedLayer<S> packed = pack<S>(layer_);
    typename PackedLayer<S>::Scratch scratch;
    std::size_t our_calls = 0, their_calls = 0;
    const auto ours = [&] { packed.forward(x_[our_calls++ % x_.size()], y_, scratch, call_); };
    const auto theirs = [&] { peer.forward(x_[their_calls++ % x_.size()], peer_y_); };
    peer_y_.resize(y_.rows(), y_.cols());
    ours();
    theirs();
    expect_equal(y_, peer_y_, c, "y");
    c.times = repeat_in_turn(repetitions, rest, ours, theirs);
    c.our_gflops = 1e-9 * forward_flops(config_, executed_work(scratch.plan)).sum().matmul /
                   c.times.first_seconds;
  }

  void compare_train(Peer& peer, int repetitions, Comparison& c) {
    const Matrix<float> dy = random_tokens(c.tokens, config_.d_model, 8);
    Matrix<float> dx(c.tokens, config_.d_model), peer_dx = dx;
    MoELayer<float>::Tape tape;
    auto grads = layer_.zero_grads();
    const Matrix<float>& x = x_.front();
    const auto ours = [&] {
      layer_.forward(x, y_, tape, call_);
      layer_.backward(x, dy, tape, dx, grads);
    };
    const auto theirs = [&] { peer.train(x, dy, peer_y_, peer_dx); };
    ours();
    theirs();
    expect_equal(y_, peer_y_, c, "y");
    expect_equal(dx, peer_dx, c, "dx");
    expect_equal(grads.experts[0].down, peer.down_gradient(0), c, "a weight's gradient");
    c.times = repeat_in_turn(repetitions, rest, ours, theirs);
    const Work work = executed_work(tape.plan);
    c.our_gflops =
        1e-9 * (forward_flops(config_, work).sum() + backward_flops(config_, work).sum()).matmul /
        c.times.first_seconds;
  }

  MoEConfig config_;
  CallOptions call_;
  MoELayer<float> layer_;
  std::vector<Matrix<float>> x_;  // in turn
  Matrix<float> y_, peer_y_;
};

}  // namespace moe::bench
