// SPDX-License-Identifier: Apache-2.0
// From a dense feed-forward to a layer of experts that goes on from there (Komatsuzaki et al. 2023,
// Sparse Upcycling; He et al. 2024, granular, as Megatron-LM has it): copies of it, or of its
// slices, and a fresh router.
#pragma once

#include <cmath>
#include <utility>
#include <vector>

#include "../detail/random.hpp"
#include "../layers/moe_layer.hpp"

namespace moe::inline MOE_INSTRUCTION_SET {

/// copies * slices experts, of which a token takes chosen_copies * slices: whole copies, as the
/// slices of one have the same weights in the router.
struct UpcycleConfig {
  Index copies = 8;
  Index slices = 1;  ///< the hidden width is cut into so many
  Index chosen_copies = 2;
  RouterConfig router = {};
  /// Of what is added to each weight of each expert, as a share of the root mean square of its
  /// tensor, to tell the copies apart: drawn from a normal distribution.
  double noise = 0.0;

  void validate() const {
    detail::throw_unless(copies >= 1, "UpcycleConfig: copies = ", copies, ", expected at least 1");
    detail::throw_unless(slices >= 1, "UpcycleConfig: slices = ", slices, ", expected at least 1");
    detail::throw_unless(chosen_copies >= 1 && chosen_copies <= copies,
                         "UpcycleConfig: chosen_copies = ", chosen_copies,
                         ", expected in [1, copies = ", copies, "]");
    detail::throw_unless(std::isfinite(noise) && noise >= 0.0, "UpcycleConfig: noise = ", noise,
                         ", expected finite and at least 0");
  }
};

namespace detail {

template <class T>
void add_noise(Matrix<T>& tensor, double noise, std::uint64_t seed, std::uint64_t stream) {
  if (tensor.size() == 0 || noise <= 0.0) {
    return;
  }
  const double deviation =
      noise * tensor.template cast<double>().norm() / std::sqrt(static_cast<double>(tensor.size()));
  const CounterRandom random(seed, stream);
  for (Index i = 0; i < tensor.size(); ++i) {
    T& value = tensor.data()[i];
    value = kernels::convert<T>(kernels::convert<double>(value) +
                                deviation * random.normal(static_cast<std::uint64_t>(i)));
  }
}

/// One of `slices` of a feed-forward: its outputs add up to the dense ones. `factor` multiplies
/// what it gives.
template <Real T>
Expert<T> slice_of(const Expert<T>& dense, Index number, Index slices, double factor) {
  const Index width = dense.d_ff() / slices, begin = number * width;
  const ExpertParams<T>& from = dense.params();
  const auto scaled = [](const auto& part, double by) {
    return Matrix<T>(part.unaryExpr(
        [by](const T& v) { return kernels::convert<T>(by * kernels::convert<double>(v)); }));
  };
  const auto rows = [&](const Matrix<T>& tensor) {
    return Matrix<T>(tensor.size() == 0 ? tensor : Matrix<T>(tensor.middleRows(begin, width)));
  };
  const auto cols = [&](const Matrix<T>& tensor) {
    return Matrix<T>(tensor.size() == 0 ? tensor : Matrix<T>(tensor.middleCols(begin, width)));
  };
  ExpertParams<T> params{.gate = rows(from.gate),
                         .up = rows(from.up),
                         .down = scaled(from.down.middleCols(begin, width), factor),
                         .gate_bias = cols(from.gate_bias),
                         .up_bias = cols(from.up_bias),
                         .down_bias = scaled(from.down_bias, factor / static_cast<double>(slices)),
                         .output_gate = from.output_gate};
  if (!dense.config().gated) {
    params.gate.resize(0, dense.d_in());
  }
  return Expert<T>(std::move(params), dense.config());
}

}  // namespace detail

/// A layer whose output is that of `dense`, to rounding, where a token's weights sum to 1 (as they
/// do with more than one choice, unless they are not renormalised) and there is no noise; then it
/// trains on from there. `down` of sliced experts is times `slices`, which is exact for every
/// activation (Megatron-LM spreads the factor over all three matrices). Throws
/// std::invalid_argument if a config breaks its rules or the width is no multiple of `slices`.
template <Real T>
MoELayer<T> upcycle(const Expert<T>& dense, const UpcycleConfig& config, std::uint64_t seed) {
  config.validate();
  dense.check_params({"Expert"});
  detail::throw_unless(dense.d_ff() % config.slices == 0, "upcycle: slices = ", config.slices,
                       ", expected a divisor of the width ", dense.d_ff());
  const Index num_experts = config.copies * config.slices;
  Router<T> fresh(dense.d_in(), config.copies, config.chosen_copies, config.router, seed);
  RouterParams<Wide<T>> params =
      Router<T>(dense.d_in(), num_experts, config.chosen_copies * config.slices, config.router,
                seed)
          .params();
  for (Index e = 0; e < num_experts; ++e) {
    params.weight.row(e) = fresh.params().weight.row(e / config.slices);
  }
  std::vector<Expert<T>> experts;
  experts.reserve(static_cast<std::size_t>(num_experts));
  for (Index e = 0; e < num_experts; ++e) {
    experts.push_back(detail::slice_of(dense, e % config.slices, config.slices,
                                       static_cast<double>(config.slices)));
    std::uint64_t stream = 0;
    ExpertParams<T>::for_each(
        [&](std::string_view, Matrix<T>& tensor) {
          detail::add_noise(tensor, config.noise, detail::seed_of(seed, std::uint64_t(e) + 1),
                            stream++);
        },
        experts.back().params());
  }
  return MoELayer<T>(
      Router<T>(std::move(params), config.chosen_copies * config.slices, config.router),
      std::move(experts));
}

}  // namespace moe::inline MOE_INSTRUCTION_SET
