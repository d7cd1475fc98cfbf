// SPDX-License-Identifier: Apache-2.0
// LibTorch: a module for each expert, and index_add to combine, as the models of the field are
// written in PyTorch. It routes by itself, and trains by autograd.
#include <torch/torch.h>

#include "peer.hpp"

namespace moe::bench {
namespace {

torch::Tensor as_tensor(const Matrix<float>& m) {
  return torch::from_blob(const_cast<float*>(m.data()), {m.rows(), m.cols()});
}

Matrix<float> as_matrix(const torch::Tensor& t) {
  const torch::Tensor rows = t.contiguous();
  return Eigen::Map<const Matrix<float>>(rows.data_ptr<float>(), rows.size(0), rows.size(1));
}

/// A projection that refers to our weight.
torch::nn::Linear linear(const Matrix<float>& weight) {
  torch::nn::Linear module(torch::nn::LinearOptions(1, 1).bias(false));
  module->weight.set_data(as_tensor(weight));
  return module;
}

struct ExpertModule : torch::nn::Module {
  explicit ExpertModule(const ExpertParams<float>& p)
      : gate(register_module("gate", linear(p.gate))),
        up(register_module("up", linear(p.up))),
        down(register_module("down", linear(p.down))) {}

  torch::Tensor forward(const torch::Tensor& x) { return down(torch::silu(gate(x)) * up(x)); }

  torch::nn::Linear gate, up, down;
};

class TorchPeer : public Peer {
 public:
  TorchPeer(const MoELayer<float>& layer, int threads)
      : top_k_(layer.router().top_k()), gate_(linear(layer.router().params().weight)) {
    at::set_num_threads(threads);
    for (const Expert<float>& expert : layer.experts()) {
      experts_.push_back(std::make_shared<ExpertModule>(expert.params()));
    }
  }

  void forward(const Matrix<float>& x, Matrix<float>& y) override {
    const torch::InferenceMode guard;
    y = as_matrix(run(as_tensor(x)));
  }

  void train(const Matrix<float>& x, const Matrix<float>& dy, Matrix<float>& y,
             Matrix<float>& dx) override {
    const torch::Tensor input = as_tensor(x).detach().requires_grad_();
    const torch::Tensor output = run(input);
    output.backward(as_tensor(dy));
    y = as_matrix(output);
    dx = as_matrix(input.grad());
  }

  Matrix<float> down_gradient(Index expert) const override {
    return as_matrix(experts_[static_cast<std::size_t>(expert)]->down->weight.grad());
  }

 private:
  torch::Tensor run(const torch::Tensor& x) {
    auto [weight, chosen] = torch::softmax(gate_(x), -1).topk(top_k_, -1);
    weight = weight / weight.sum(-1, true);
    torch::Tensor y = torch::zeros_like(x);
    for (std::size_t e = 0; e < experts_.size(); ++e) {
      const auto places = (chosen == static_cast<std::int64_t>(e)).nonzero_numpy();
      const torch::Tensor &token = places[0], &choice = places[1];
      const torch::Tensor rows = experts_[e]->forward(x.index_select(0, token));
      y.index_add_(0, token, rows * weight.index({token, choice}).unsqueeze(1));
    }
    return y;
  }

  std::int64_t top_k_;
  torch::nn::Linear gate_;
  std::vector<std::shared_ptr<ExpertModule>> experts_;
};

[[maybe_unused]] const bool added =
    add_peer({"LibTorch", Type::f32, true, [](const MoELayer<float>& layer, int threads) {
                return std::make_unique<TorchPeer>(layer, threads);
              }});

}  // namespace
}  // namespace moe::bench
