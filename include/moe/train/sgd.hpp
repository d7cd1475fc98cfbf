// SPDX-License-Identifier: Apache-2.0
// Stochastic gradient descent with momentum (Sutskever et al. 2013, without their rate in the
// momentum), a rule of an Optimiser.
#pragma once

#include "../kernels/lanes.hpp"
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
  static constexpr std::string_view name = "Sgd";
  static constexpr std::size_t num_moments = 1;

  struct Constants {
    W rate, momentum, decay;

    void update(Index n, W* value, const W* gradient, W scale, W* const* moments) const {
      using L = kernels::LanesOr<W>;
      kernels::for_lanes<W>(n, [&](auto at) {
        const L w = at.load(value);
        const L g = kernels::madd(L(decay), w, at.load(gradient) * L(scale));
        const L m = kernels::madd(L(momentum), at.load(moments[0]), g);
        at.store(moments[0], m);
        at.store(value, kernels::madd(L(-rate), m, w));
      });
    }
  };

  static Constants prepare(const Config& config, Index /*number*/, double rate, double decay) {
    return {detail::constant_of_step<W>(rate, "Sgd: rate"), static_cast<W>(config.momentum),
            detail::constant_of_step<W>(config.decay * decay, "Sgd: decay")};
  }
};

template <Real W>
using Sgd = Optimiser<W, SgdRule<W>>;

}  // namespace moe::inline MOE_INSTRUCTION_SET
