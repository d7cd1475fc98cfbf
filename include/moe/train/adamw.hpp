// SPDX-License-Identifier: Apache-2.0
// AdamW (Loshchilov and Hutter 2019, Decoupled Weight Decay Regularization, algorithm 2), a rule of
// an Optimiser. In float a step moves 28 bytes a parameter: value and two moments read and written,
// the gradient read.
#pragma once

#include "../kernels/square_root.hpp"
#include "optimiser.hpp"

namespace moe::inline MOE_INSTRUCTION_SET {

struct AdamWConfig {
  double beta1 = 0.9, beta2 = 0.999;  ///< of the moments, in [0, 1)
  double epsilon = 1e-8;              ///< positive, also as a number of the optimiser's scalar
  double decay = 0.01;                ///< a step takes rate * decay of the weight itself

  void validate() const {
    for (const double beta : {beta1, beta2}) {
      detail::throw_unless(beta >= 0.0 && beta < 1.0, "AdamWConfig: a beta is ", beta,
                           ", expected in [0, 1)");
    }
    detail::throw_unless(std::isfinite(epsilon) && epsilon > 0.0,
                         "AdamWConfig: epsilon = ", epsilon, ", expected finite and positive");
    detail::throw_unless(std::isfinite(decay) && decay >= 0.0, "AdamWConfig: decay = ", decay,
                         ", expected finite and at least 0");
  }
};

/// m = beta1 m + (1 - beta1) g,  v = beta2 v + (1 - beta2) g^2,
/// w = w (1 - rate decay) - rate m / (1 - beta1^t) / (sqrt(v / (1 - beta2^t)) + epsilon)
template <Real W>
struct AdamWRule {
  using Config = AdamWConfig;
  static constexpr std::string_view name = "AdamW";
  static constexpr std::size_t num_moments = 2;

  struct Constants {
    W keep, step, first, second, root, epsilon;

    void update(Index n, W* value, const W* gradient, W scale, W* const* moments) const {
      using L = kernels::LanesOr<W>;
      W* const mean = moments[0];
      W* const square = moments[1];
      kernels::for_lanes<W>(n, [&](auto at) {
        const L g = at.load(gradient) * L(scale);
        const L m = kernels::madd(L(first), g - at.load(mean), at.load(mean));
        const L v =
            kernels::madd(L(second), kernels::madd(g, g, -at.load(square)), at.load(square));
        const L root_of_v = kernels::madd(kernels::square_root(v), L(root), L(epsilon));
        at.store(mean, m);
        at.store(square, v);
        at.store(value, kernels::madd(L(-step), m / root_of_v, at.load(value) * L(keep)));
      });
    }
  };

  /// Throws std::invalid_argument if epsilon is 0 in W, as 0 / 0 would be the step of a weight
  /// without a gradient, or infinite.
  static void check_in_scalar(const Config& config) {
    const W epsilon = static_cast<W>(config.epsilon);
    detail::throw_unless(std::isfinite(epsilon) && epsilon > W(0),
                         "AdamWConfig: epsilon = ", config.epsilon, " is ", epsilon,
                         " in the scalar of the optimiser, expected finite and positive");
  }

  static Constants prepare(const Config& config, Index number, double rate, double decay) {
    const double t = static_cast<double>(number);
    return {
        detail::constant_of_step<W>(1.0 - rate * config.decay * decay, "AdamW: factor of decay"),
        detail::constant_of_step<W>(rate / (1.0 - std::pow(config.beta1, t)), "AdamW: rate"),
        static_cast<W>(1.0 - config.beta1),
        static_cast<W>(1.0 - config.beta2),
        static_cast<W>(1.0 / std::sqrt(1.0 - std::pow(config.beta2, t))),
        static_cast<W>(config.epsilon)};
  }
};

template <Real W>
using AdamW = Optimiser<W, AdamWRule<W>>;

}  // namespace moe::inline MOE_INSTRUCTION_SET
