// SPDX-License-Identifier: Apache-2.0
// Each activation: value, derivative, and what they cost, side by side. One formula each serves
// scalars and Lanes, by the rules of lanes.hpp: an element has the same bits wherever it stands in
// a row; NaN stays NaN.
//
// FLOPs are counted by the library's rule (cost.hpp): each + - * / and each call of exp, tanh, erf
// is one, comparisons and signs are none.
#pragma once

#include <cmath>
#include <limits>
#include <numbers>

#include "../config.hpp"
#include "../kernels/lanes.hpp"
#include "../kernels/vector_math.hpp"
#include "../types.hpp"

namespace moe::inline MOE_INSTRUCTION_SET {

struct Relu {
  static constexpr int value_flops = 0, derivative_flops = 0;

  template <class T>
  static T value(const T& z) {
    return kernels::where(z < T(0), T(0), z);
  }
  template <class T>
  static T derivative(const T& z) {
    return kernels::where(z > T(0), T(1), kernels::where(z <= T(0), T(0), z));
  }
};

/// max(z, 0)^2 (So et al. 2021, Primer).
struct ReluSquared {
  static constexpr int value_flops = 1, derivative_flops = 1;

  template <class T>
  static T value(const T& z) {
    return Relu::value(z) * Relu::value(z);
  }
  template <class T>
  static T derivative(const T& z) {
    return T(2) * Relu::value(z);
  }
};

/// z * Phi(z), Phi the normal distribution (Hendrycks and Gimpel 2016).
struct GeluErf {
  static constexpr int value_flops = 5, derivative_flops = 10;

  template <class T>
  static T value(const T& z) {
    return z * distribution(z);
  }
  template <class T>
  static T derivative(const T& z) {
    using std::exp;
    const T density = T(std::numbers::inv_sqrtpi / std::numbers::sqrt2) * exp(T(-0.5) * z * z);
    return kernels::madd(z, density, distribution(z));
  }

 private:
  template <class T>
  static T distribution(const T& z) {
    using std::erf;
    return T(0.5) * (T(1) + erf(z * T(1.0 / std::numbers::sqrt2)));
  }
};

/// The tanh approximation of the same paper.
struct GeluTanh {
  static constexpr int value_flops = 9, derivative_flops = 18;

  template <class T>
  static T value(const T& z) {
    return T(0.5) * z * (T(1) + inner(z));
  }
  template <class T>
  static T derivative(const T& z) {
    const T t = inner(z);
    const T slope = T(scale) * kernels::madd(T(3 * cubic) * z, z, T(1));
    const T dt = kernels::madd(-t, t, T(1)) * slope;
    return kernels::madd(T(0.5) * z, dt, T(0.5) * (T(1) + t));
  }

 private:
  static constexpr double cubic = 0.044715;
  static constexpr double scale = std::numbers::sqrt2 * std::numbers::inv_sqrtpi;

  template <class T>
  static T inner(const T& z) {
    using std::tanh;
    return tanh(T(scale) * kernels::madd(T(cubic) * z * z, z, z));
  }
};

/// z * sigmoid(z) (Elfwing et al. 2017). Always inlined: value and derivative then share a sigmoid.
struct Silu {
  static constexpr int value_flops = 4, derivative_flops = 7;

  template <class T>
  static EIGEN_ALWAYS_INLINE T value(const T& z) {
    return z * kernels::sigmoid(z);
  }
  template <class T>
  static EIGEN_ALWAYS_INLINE T derivative(const T& z) {
    const T s = kernels::sigmoid(z);
    return s * kernels::madd(z, T(1) - s, T(1));
  }
};

/// z * sigmoid(alpha z), the sigmoid approximation of GELU of the same paper; the gate of gpt-oss.
struct GeluQuick {
  static constexpr int value_flops = 5, derivative_flops = 8;

  double alpha = ExpertConfig{}.alpha;

  template <class T>
  EIGEN_ALWAYS_INLINE T value(const T& z) const {
    return z * kernels::sigmoid(T(alpha) * z);
  }
  template <class T>
  EIGEN_ALWAYS_INLINE T derivative(const T& z) const {
    const T scaled = T(alpha) * z, s = kernels::sigmoid(scaled);
    return s * kernels::madd(scaled, T(1) - s, T(1));
  }
};

/// What a bounded function has of z: an infinity stays one, as nothing plausible may come of it.
template <class T>
EIGEN_ALWAYS_INLINE T unless_infinite(const T& z, const T& bounded) {
  constexpr double infinity = std::numeric_limits<double>::infinity();
  return kernels::where(z < T(infinity), kernels::where(z > T(-infinity), bounded, z), z);
}

/// b tanh(z / b) sigmoid(z): a SiLU that is never above b (Kimi-K3).
struct Situ {
  static constexpr int value_flops = 7, derivative_flops = 12;

  double bound = ExpertConfig{}.gate_bound;

  template <class T>
  EIGEN_ALWAYS_INLINE T value(const T& z) const {
    using std::tanh;
    return unless_infinite<T>(z, T(bound) * tanh(z / T(bound)) * kernels::sigmoid(z));
  }
  template <class T>
  EIGEN_ALWAYS_INLINE T derivative(const T& z) const {
    using std::tanh;
    const T t = tanh(z / T(bound)), s = kernels::sigmoid(z);
    return s * kernels::madd(T(bound) * t, T(1) - s, kernels::madd(-t, t, T(1)));
  }
};

/// Calls f(Kind{}) with the type of the activation: one branch per matrix, none per element.
template <class F>
decltype(auto) with_activation(const ExpertConfig& config, F&& f) {
  switch (config.activation) {
    case Activation::relu:
      return f(Relu{});
    case Activation::relu_squared:
      return f(ReluSquared{});
    case Activation::gelu_erf:
      return f(GeluErf{});
    case Activation::gelu_tanh:
      return f(GeluTanh{});
    case Activation::gelu_quick:
      return f(GeluQuick{config.alpha});
    case Activation::silu:
      return f(Silu{});
    case Activation::situ:
      return f(Situ{config.gate_bound});
  }
  detail::fail("Activation: value = ", static_cast<int>(config.activation),
               ", expected one of the enum");
}

}  // namespace moe::inline MOE_INSTRUCTION_SET
