// SPDX-License-Identifier: Apache-2.0
// The backward of MoELayer: from dy to the gradients of the experts, of their weights, of the
// router and of x.
#pragma once

#include "moe_layer.hpp"

namespace moe::inline MOE_INSTRUCTION_SET {

template <Real T, RouterLike<T> RouterT, class E>
requires ExpertLike<ExpertIn<E, T>, T>
template <class Work>
void MoELayer<T, RouterT, E>::run_back(const LayerInput<T>& input, ConstMatrixRef<T> dout,
                                       const TapedRouting<T, RouterT>& routed, Work& work,
                                       const LayerInputGrads<T>& dinput, Grads& grads) const {
  const int threads = routed.num_threads;
  const ConstMatrixRef<T> x = input.x;
  const auto& padding = routed.routing.padding;
  work.dx_rows.resize(routed.plan.num_rows(), experts_.d_in());
  if (output_norm_) {
    output_norm_->backward(dout, padding, work.output_norm, grads.output_norm, threads);
  }
  const ConstMatrixRef<T> dy =
      output_norm_ ? ConstMatrixRef<T>(work.output_norm.dsum) : dout;  // of what is combined
  const ConstMatrixRef<T> scaled_dy =
      coefficients_ ? scaled_each<T>(
                          dy, [&](Index token) { return work.coefficients.value(token, 0); },
                          work.routed_dy, threads)
                    : scaled_rows<T>(dy, options_.routed_scale, work.routed_dy, threads);
  if (latent_) {
    latent_->leave_backward(detail::zero_padding<T>(scaled_dy, padding, work.clean_dy, threads),
                            work.latent, grads.latent, threads);
  }
  const ConstMatrixRef<T> routed_dy =
      latent_ ? ConstMatrixRef<T>(work.latent.dcombined) : scaled_dy;
  const ConstMatrixRef<T> drows = gather_rows<T>(
      {routed_dy, routed.plan.groups(), weight_on(WeightOn::output, work)}, work.drows, threads);
  experts_.backward(expert_input(x, routed, work), drows, work.experts, work.dx_rows, grads.experts,
                    threads);
  weights_back(expert_x(x, work), routed_dy, routed, work);
  MatrixRef<T> dx = dinput.dx, router_dx = dinput.router_dx;
  router_back(input.router_x, routed, work, router_dx, grads.router);
  if (shared_) {
    work.shared_dx.resize(x.rows(), d_in());
    const ConstMatrixRef<T> shared_dy =
        coefficients_ ? scaled_each<T>(
                            dy, [&](Index token) { return work.coefficients.value(token, 1); },
                            work.shared_dy, threads)
                      : scaled_rows<T>(dy, options_.shared_scale, work.shared_dy, threads);
    shared_->backward(x, shared_dy, work.shared, work.shared_dx, grads.shared);
  }
  input_back(x, routed, work, dinput, grads);
  if (coefficients_) {
    coefficients_back(x, dy, routed, work, dx, grads);
  }
  detail::for_rows(static_cast<Index>(padding.size()), threads, [&](Index token) {
    if (padding[static_cast<std::size_t>(token)] != 0) {
      dx.row(token).setZero();
      router_dx.row(token).setZero();
    }
  });
}

template <Real T, RouterLike<T> RouterT, class E>
requires ExpertLike<ExpertIn<E, T>, T>
template <class Work>
void MoELayer<T, RouterT, E>::input_back(ConstMatrixRef<T> x,
                                         const TapedRouting<T, RouterT>& routed, Work& work,
                                         const LayerInputGrads<T>& dinput, Grads& grads) const {
  const int threads = routed.num_threads;
  MatrixRef<T> dx = dinput.dx;
  const MatrixRef<T> shared_dx = work.shared_dx;
  const std::span<const W> weight =
      weighted_when_added ? weight_on(WeightOn::input, work) : std::span<const W>();
  if (!latent_) {
    const MatrixRef<T>* const from_router = dinput.apart ? nullptr : &dx;
    const MatrixRef<T>* const from_shared = shared_ ? &shared_dx : nullptr;
    return combine_rows<T>(work.dx_rows, routed.plan, weight, {from_router, from_shared}, dx,
                           threads);
  }
  work.latent.dinside.resize(x.rows(), latent_->width());
  combine_rows<T>(work.dx_rows, routed.plan, weight, nullptr, work.latent.dinside, threads);
  if (dinput.apart) {
    dx.setZero();
  }
  detail::for_rows(shared_ ? x.rows() : 0, threads, [&](Index token) {
    kernels::add_rows<T>(shared_dx.row(token), nullptr, &dx.coeffRef(token, 0));
  });
  latent_->enter_backward(detail::zero_padding<T>(x, routed.routing.padding, work.clean_x, threads),
                          work.latent, dx, grads.latent, threads);
}

/// Their gradients are the products of dy with the routed and with the shared output.
template <Real T, RouterLike<T> RouterT, class E>
requires ExpertLike<ExpertIn<E, T>, T>
template <class Work>
void MoELayer<T, RouterT, E>::coefficients_back(ConstMatrixRef<T> x, ConstMatrixRef<T> dy,
                                                const TapedRouting<T, RouterT>& routed, Work& work,
                                                MatrixRef<T> dx, Grads& grads) const {
  const int threads = routed.num_threads;
  const std::span<const W> weight = weight_on(WeightOn::output, work);
  auto& gradient = work.coefficients.gradient;
  gradient.resize(2, x.rows());
  detail::for_rows(x.rows(), threads, [&](Index token) {
    gradient(0, token) = gradient(1, token) = W(0);
    if (routed.routing.is_padding(token)) {
      return;
    }
    const T* of_token = &dy.coeffRef(token, 0);
    for (const Index slot : routed.plan.slots_of(token)) {
      const W product = kernels::dot(of_token, &work.rows.coeffRef(slot, 0), dy.cols());
      gradient(0, token) +=
          weight.empty() ? product : weight[static_cast<std::size_t>(slot)] * product;
    }
    gradient(1, token) = kernels::dot(of_token, &work.shared_out.coeffRef(token, 0), dy.cols());
  });
  coefficients_->backward(detail::zero_padding<T>(x, routed.routing.padding, work.clean_x, threads),
                          work.coefficients, dx, grads.coefficients, threads);
}

template <Real T, RouterLike<T> RouterT, class E>
requires ExpertLike<ExpertIn<E, T>, T>
template <class Work, class RouterGrads>
void MoELayer<T, RouterT, E>::router_back(const ConstMatrixRef<T>& x,
                                          const TapedRouting<T, RouterT>& routed, Work& work,
                                          MatrixRef<T> dx, RouterGrads& grads) const {
  if constexpr (LeavesOutPadding<RouterT>) {
    router_.backward(x, routed.routing, work.gradient, dx, grads);
  } else {
    const ConstMatrixRef<T> tokens = detail::without_padding<T>(x, routed.routing, work.gradient,
                                                                work.router_x, routed.num_threads);
    router_.backward(tokens, routed.routing, work.gradient, dx, grads);
  }
}

/// The gradients of the router's weights; where those act on the inputs, dx_rows takes them in.
template <Real T, RouterLike<T> RouterT, class E>
requires ExpertLike<ExpertIn<E, T>, T>
template <class Work>
void MoELayer<T, RouterT, E>::weights_back(ConstMatrixRef<T> x, ConstMatrixRef<T> dy,
                                           const TapedRouting<T, RouterT>& routed,
                                           Work& work) const {
  const bool on_input = options_.weight_on == WeightOn::input;
  detail::for_rows(routed.plan.num_rows(), routed.num_threads, [&](Index row) {
    const auto slot = static_cast<std::size_t>(row);
    const Index token = routed.plan.token()[slot];
    T* dx_row = &work.dx_rows.coeffRef(row, 0);
    W& dweight = work.gradient.weight(token, routed.plan.choice()[slot]);
    const auto add = [&](W product) {
      if (routed.weight_factor > 1.0) {
        product *= W(routed.weight_factor);
      }
      dweight += product;
    };
    if constexpr (WeighsHidden<Set>) {
      if (options_.weight_on == WeightOn::hidden) {
        return add(work.experts.dhidden_weight[slot]);
      }
    }
    add(on_input ? kernels::dot(&x.coeffRef(token, 0), dx_row, x.cols())
                 : kernels::dot(&dy.coeffRef(token, 0), &work.rows.coeffRef(row, 0), dy.cols()));
    if (on_input && !weighted_when_added) {
      kernels::scale_row(work.row_weight[slot], x.cols(), dx_row);
    }
  });
}

}  // namespace moe::inline MOE_INSTRUCTION_SET
