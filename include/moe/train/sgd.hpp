// SPDX-License-Identifier: Apache-2.0
// Stochastic gradient descent with momentum (Sutskever et al. 2013, without their rate in the
// momentum), a rule of an Optimiser.
#pragma once

#include "optimiser.hpp"

namespace moe::inline MOE_INSTRUCTION_SET {

struct SgdConfig {
  double momentum = 0.9;  ///< in [0, 1)
  double decay = 0.0;     ///< of the weight, added to its gradient

  void validate() const {
    detail::throw_unless(momentum >= 0.0 && momentum < 1.0, "SgdConfig: momentum = ", momentum,
                         ", expected in [0, 1)");
    detail::throw_unless(std::isfinite(decay) && decay >= 0.0, "SgdConfig: decay = ", decay,
                         ", expected finite and at least 0");
  }
};

/// m = momentum m + g + decay w,  w = w - rate m
template <Real W>
struct SgdRule {
  using Config = SgdConfig;
  static constexpr std::size_t num_moments = 1;

  struct Constants {
    W rate, momentum, decay;

    void update(Index n, W* value, const W* gradient, W scale, W* const* moments) const {
      W* const m = moments[0];
      for (Index i = 0; i < n; ++i) {
        m[i] = momentum * m[i] + (gradient[i] * scale + decay * value[i]);
        value[i] = value[i] - rate * m[i];
      }
    }
  };

  static Constants prepare(const Config& config, Index /*number*/, double rate, double decay) {
    return {static_cast<W>(rate), static_cast<W>(config.momentum),
            static_cast<W>(config.decay * decay)};
  }
};

template <Real W>
using Sgd = Optimiser<W, SgdRule<W>>;

}  // namespace moe::inline MOE_INSTRUCTION_SET
