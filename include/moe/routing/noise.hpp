// SPDX-License-Identifier: Apache-2.0
// The random part of routing: jitter on the input (Fedus et al. 2021) and noise on the logits
// (Shazeer et al. 2017). Each number comes from its place and the seed of the call, so that
// it is the same for any number of threads, and once more in backward.
#pragma once

#include <cmath>
#include <optional>

#include "../config.hpp"
#include "../detail/random.hpp"
#include "../routing_table.hpp"

namespace moe::inline MOE_INSTRUCTION_SET {

/// The noise of one call; without a seed there is none.
template <Real T>
class RouterNoise {
 public:
  RouterNoise(const LogitsConfig& config, const std::optional<std::uint64_t>& seed)
      : jitter_(seed ? config.input_jitter : 0.0),
        on_logits_(seed && config.noisy),
        jitters_(seed.value_or(0), jitter_stream),
        normals_(seed.value_or(0), noise_stream) {}

  bool on_input() const { return jitter_ > 0.0; }
  bool on_logits() const { return on_logits_; }

  /// The factor of an element of the input (N, D), uniform in 1 -+ input_jitter.
  T factor(Index token, Index col, Index d_model) const {
    return T(1.0 + jitter_ * (2.0 * jitters_.uniform(place(token, col, d_model)) - 1.0));
  }
  /// From N(0, 1), for an element of the logits (N, E).
  T normal(Index token, Index expert, Index num_experts) const {
    return T(normals_.normal(place(token, expert, num_experts)));
  }

 private:
  enum Stream : std::uint64_t { jitter_stream = 1, noise_stream = 2 };

  static std::uint64_t place(Index row, Index col, Index cols) {
    return static_cast<std::uint64_t>(row * cols + col);
  }

  double jitter_;
  bool on_logits_;
  detail::CounterRandom jitters_, normals_;
};

/// For the experts [first, last) of a token, whose logits are clean and whose noise_scale is still
/// the projection n: scale = softplus(n), logits = clean + normal * scale.
template <Real W>
void add_noise(const RouterNoise<W>& noise, Index token, Index first, Index last,
               RoutingTable<W>& table) {
  using std::abs, std::exp, std::log1p;
  for (Index e = first; e < last; ++e) {
    W& scale = table.noise_scale(token, e);
    scale = (scale > W(0) ? scale : W(0)) + log1p(exp(-abs(scale)));
    table.clean_logits(token, e) = table.logits(token, e);
    table.logits(token, e) += noise.normal(token, e, table.logits.cols()) * scale;
  }
}

/// Makes the gradient of the projection n of that of the scale: softplus'(n) = 1 - exp(-scale).
template <Real W>
void add_noise_gradient(const RouterNoise<W>& noise, Index token, const RoutingTable<W>& table,
                        RoutingGradient<W>& gradient) {
  using std::exp;
  for (Index e = 0; e < table.logits.cols(); ++e) {
    W& dscale = gradient.noise_scale(token, e);
    dscale += gradient.logits(token, e) * noise.normal(token, e, table.logits.cols());
    if (dscale < W(0) || dscale > W(0)) {  // of a masked expert it is 0, and its scale may be NaN
      dscale *= W(1) - exp(-table.noise_scale(token, e));
    }
  }
}

}  // namespace moe::inline MOE_INSTRUCTION_SET
