// SPDX-License-Identifier: Apache-2.0
// The hidden number of a feed-forward, from its up or its gate and up: value, gradients, and what
// they cost, side by side. By the rules of activation.hpp.
//
// Clamps pass the gradient on up to and at their limit, and none beyond it, as PyTorch's do. NaN
// goes through them, and so do infinities, where the published code gives the limit: what has
// overflowed may not look like a number again.
#pragma once

#include "activation.hpp"

namespace moe::inline MOE_INSTRUCTION_SET {

/// The gradients of gate and up.
template <class T>
struct PairGradient {
  T gate, up;
};

/// act(up)
template <class Act>
struct Ungated {
  static constexpr bool gated = false;
  static constexpr int value_flops = Act::value_flops, gradient_flops = 1 + Act::derivative_flops;

  Act act;

  template <class T>
  EIGEN_ALWAYS_INLINE T value(const T& up) const {
    return act.value(up);
  }
  template <class T>
  EIGEN_ALWAYS_INLINE T gradient(const T& up, const T& dhidden) const {
    return dhidden * act.derivative(up);
  }
};

/// act(gate) * up (Shazeer 2020, GLU variants)
template <class Act>
struct Product {
  static constexpr bool gated = true;
  static constexpr int value_flops = Act::value_flops + 1;
  static constexpr int gradient_flops = 3 + Act::value_flops + Act::derivative_flops;

  Act act;

  template <class T>
  EIGEN_ALWAYS_INLINE T value(const T& gate, const T& up) const {
    return act.value(gate) * up;
  }
  template <class T>
  EIGEN_ALWAYS_INLINE PairGradient<T> gradient(const T& gate, const T& up, const T& dhidden) const {
    return {dhidden * up * act.derivative(gate), dhidden * act.value(gate)};
  }
};

/// act(min(gate, L)) * (clamp(up, -L, L) + offset), or min(act(gate), L) * ... (ExpertConfig).
template <class Act>
struct ClampedProduct {
  static constexpr bool gated = true;

  Act act;
  double limit, before, after, offset;
  int value_flops, gradient_flops;

  ClampedProduct(const Act& activation, const ExpertConfig& config)
      : act(activation),
        limit(config.limit.value_or(infinity)),
        before(config.clamp == Clamp::before ? limit : infinity),
        after(config.clamp == Clamp::after ? limit : infinity),
        offset(config.up_offset),
        value_flops(Act::value_flops + 1 + (std::abs(offset) > 0.0 ? 1 : 0)),
        gradient_flops(value_flops + 2 + Act::derivative_flops) {}

  template <class T>
  EIGEN_ALWAYS_INLINE T value(const T& gate, const T& up) const {
    return at_most(act.value(at_most(gate, before)), after) * clamped(up);
  }
  template <class T>
  EIGEN_ALWAYS_INLINE PairGradient<T> gradient(const T& gate, const T& up, const T& dhidden) const {
    using kernels::where;
    const T cut = at_most(gate, before), activated = act.value(cut);
    const T dgate = where(activated > T(after), T(0), dhidden * clamped(up) * act.derivative(cut));
    const T dup = where(up < T(-limit), T(0), dhidden * at_most(activated, after));
    return {where(gate > T(before), T(0), dgate), where(up > T(limit), T(0), dup)};
  }

 private:
  static constexpr double infinity = std::numeric_limits<double>::infinity();

  template <class T>
  static EIGEN_ALWAYS_INLINE T at_most(const T& z, double most) {
    return kernels::where(z > T(most), kernels::where(z < T(infinity), T(most), z), z);
  }
  template <class T>
  EIGEN_ALWAYS_INLINE T clamped(const T& up) const {
    const T low = kernels::where(up > T(-infinity), T(-limit), up);
    const T cut = kernels::where(up < T(-limit), low, at_most(up, limit));
    return detail::equals(offset, 0.0) ? cut : cut + T(offset);
  }
};

/// Situ(gate) * b tanh(up / b)
struct SituPair {
  static constexpr bool gated = true;
  static constexpr int value_flops = Situ::value_flops + 4;
  static constexpr int gradient_flops = Situ::value_flops + Situ::derivative_flops + 9;

  Situ act;
  double bound;

  template <class T>
  EIGEN_ALWAYS_INLINE T value(const T& gate, const T& up) const {
    using std::tanh;
    return act.value(gate) * unless_infinite<T>(up, T(bound) * tanh(up / T(bound)));
  }
  template <class T>
  EIGEN_ALWAYS_INLINE PairGradient<T> gradient(const T& gate, const T& up, const T& dhidden) const {
    using std::tanh;
    const T t = tanh(up / T(bound));
    return {dhidden * (T(bound) * t) * act.derivative(gate),
            dhidden * act.value(gate) * kernels::madd(-t, t, T(1))};
  }
};

/// Calls f(pair) with what the config says: one branch per matrix, none per element.
template <class F>
decltype(auto) with_pair(const ExpertConfig& config, F&& f) {
  return with_activation(config, [&](auto act) {
    using Act = decltype(act);
    if (!config.gated) {
      return f(Ungated<Act>{act});
    }
    if constexpr (std::same_as<Act, Situ>) {
      return f(SituPair{act, config.up_bound});
    } else {
      return config.limit || !detail::equals(config.up_offset, 0.0)
                 ? f(ClampedProduct<Act>(act, config))
                 : f(Product<Act>{act});
    }
  });
}

}  // namespace moe::inline MOE_INSTRUCTION_SET
