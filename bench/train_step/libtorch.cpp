// SPDX-License-Identifier: Apache-2.0
// The step in LibTorch, as the models of the field are written in PyTorch: a loop over the experts
// with index_select and index_add, autograd, and its own AdamW. Its products are those of the BLAS
// that is installed, of which the reference BLAS is no yardstick.
#include <torch/torch.h>

#include "task.hpp"

namespace moe::bench {
namespace {

template <Real T>
torch::Tensor copy_of(const Matrix<T>& m) {
  return torch::from_blob(const_cast<T*>(m.data()), {m.rows(), m.cols()},
                          c10::CppTypeToScalarType<T>::value)
      .clone();
}

struct ExpertTensors {
  torch::Tensor gate, up, down;  // gate undefined where the experts have none
};

template <Real T>
class TorchStep : public PeerStep {
 public:
  TorchStep(const Task<T>& task, int threads)
      : balance_(task.balance),
        z_(task.z),
        clip_(task.clip),
        config_(task.config),
        capacity_(rows_of_expert(task.config.capacity, task.x.rows())),
        x_(copy_of(task.x).requires_grad_()),
        target_(copy_of(task.target)),
        router_(parameter(task.layer.router().params().weight)) {
    at::set_num_threads(threads);
    for (const Expert<T>& expert : task.layer.experts()) {
      const auto& p = expert.params();
      experts_.push_back({config_.expert.gated ? parameter(p.gate) : torch::Tensor(),
                          parameter(p.up), parameter(p.down)});
    }
    adam_ = std::make_unique<torch::optim::AdamW>(parameters_,
                                                  torch::optim::AdamWOptions(task.rate)
                                                      .betas({task.adam.beta1, task.adam.beta2})
                                                      .eps(task.adam.epsilon)
                                                      .weight_decay(task.adam.decay));
  }

  StepFigures step() override {
    adam_->zero_grad();
    x_.mutable_grad().reset();
    const torch::Tensor loss = compute_loss();
    loss.backward();
    const double norm = clip_gradients();
    adam_->step();
    return {loss.template item<double>(), norm};
  }

 private:
  /// The most rows of an expert.
  std::int64_t rows_of_expert(const Capacity& capacity, Index tokens) const {
    const double share =
        static_cast<double>(tokens * config_.top_k) / static_cast<double>(config_.num_experts);
    return capacity.factor ? static_cast<std::int64_t>(std::ceil(*capacity.factor * share))
                           : tokens;
  }

  torch::Tensor parameter(const Matrix<T>& weight) {
    parameters_.push_back(copy_of(weight).requires_grad_());
    return parameters_.back();
  }

  torch::Tensor expert(const ExpertTensors& e, const torch::Tensor& x) const {
    const torch::Tensor up = torch::linear(x, e.up);
    const torch::Tensor hidden =
        e.gate.defined() ? torch::silu(torch::linear(x, e.gate)) * up : torch::relu(up);
    return torch::linear(hidden, e.down);
  }

  torch::Tensor compute_loss() {
    const torch::Tensor logits = torch::linear(x_, router_);
    const torch::Tensor probs = torch::softmax(logits, -1);
    auto [weight, chosen] = probs.topk(config_.top_k, -1);
    if (config_.router.weight.renormalises(config_.top_k)) {
      weight = weight / weight.sum(-1, true);
    }
    torch::Tensor y = torch::zeros_like(target_);
    for (std::size_t e = 0; e < experts_.size(); ++e) {
      const auto places = (chosen == static_cast<std::int64_t>(e)).nonzero_numpy();
      const torch::Tensor token = places[0].slice(0, 0, capacity_);
      const torch::Tensor choice = places[1].slice(0, 0, capacity_);
      const torch::Tensor rows = expert(experts_[e], x_.index_select(0, token));
      y.index_add_(0, token, rows * weight.index({token, choice}).unsqueeze(1));
    }
    const torch::Tensor squared_log = torch::logsumexp(logits, -1).square();
    return torch::mse_loss(y, target_) + balance_ * balancing_loss(probs, chosen) +
           z_ * squared_log.mean();
  }

  /// E times the sum over the experts of their share of the choices and their mean probability.
  torch::Tensor balancing_loss(const torch::Tensor& probs, const torch::Tensor& chosen) const {
    const torch::Tensor count =
        torch::bincount(chosen.flatten(), {}, probs.size(1)).to(probs.dtype());
    return static_cast<double>(probs.size(1)) *
           (count / static_cast<double>(chosen.numel()) * probs.mean(0)).sum();
  }

  /// As clip_grad_norm_, which adds 1e-6 to the norm: the curves would part there.
  double clip_gradients() {
    const torch::NoGradGuard guard;
    std::vector<torch::Tensor> norms;
    for (const torch::Tensor& p : parameters_) {
      norms.push_back(p.grad().norm());
    }
    const double norm = torch::stack(norms).norm().template item<double>();
    for (const torch::Tensor& p : parameters_) {
      if (norm > clip_) {
        p.grad().mul_(clip_ / norm);
      }
    }
    return norm;
  }

  double balance_, z_, clip_;
  MoEConfig config_;
  std::int64_t capacity_;
  torch::Tensor x_, target_;
  std::vector<torch::Tensor> parameters_;
  torch::Tensor router_;
  std::vector<ExpertTensors> experts_;
  std::unique_ptr<torch::optim::AdamW> adam_;
};

template <Real T>
bool add() {
  make_peer_step<T> = [](const Task<T>& task, int threads) -> std::unique_ptr<PeerStep> {
    return std::make_unique<TorchStep<T>>(task, threads);
  };
  return true;
}

[[maybe_unused]] const bool added = add<float>() && add<double>();

}  // namespace
}  // namespace moe::bench
