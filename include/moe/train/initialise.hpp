// SPDX-License-Identifier: Apache-2.0
// How a fresh layer's weights are drawn where N(0, 1 / fan_in) of each is not wanted: by factors of
// that, or by a function of one's own. For any part whose parameters are walked: a MoELayer, a
// DenseFfn, an expert.
#pragma once

#include <cmath>
#include <cstdint>
#include <optional>
#include <string_view>
#include <type_traits>
#include <vector>

#include "../detail/random.hpp"
#include "../kernels/convert.hpp"
#include "../parameters.hpp"

namespace moe::inline MOE_INSTRUCTION_SET {

/// Factors of the standard deviations of a fresh layer's weights. Switch Transformers (Fedus 2021)
/// has sqrt(0.1) for all of them.
struct InitScale {
  double input = 1.0;   ///< of gate and up of all feed-forwards
  double output = 1.0;  ///< of the last projection: down, or up of a latent part around experts
  double router = 1.0;  ///< of all its matrices

  void validate() const {
    for (const double factor : {input, output, router}) {
      detail::throw_unless(std::isfinite(factor) && factor >= 0.0, "InitScale: a factor is ",
                           factor, ", expected finite and at least 0");
    }
  }
};

/// For InitScale::output in a model of so many blocks, of each of which `additions` parts add to
/// the residual stream: 1 / sqrt(blocks * additions), so that it does not grow with them (Radford
/// et al. 2019, GPT-2). Throws std::invalid_argument for less than one of either.
inline double residual_scale(Index blocks, Index additions = 2) {
  detail::throw_unless(blocks >= 1 && additions >= 1, "residual_scale: ", blocks, " blocks of ",
                       additions, " additions, expected at least 1 of each");
  return 1.0 / std::sqrt(static_cast<double>(blocks) * static_cast<double>(additions));
}

namespace detail {

/// Whether a tensor belongs to a part, as "experts.3.up" does to "experts".
inline bool is_of(const ParameterName& name, std::string_view part) {
  const ParameterName* at = name.part;
  while (at != nullptr && at->word != part) {
    at = at->part;
  }
  return at != nullptr;
}

/// Of a tensor with so many rows.
inline double init_factor(const ParameterName& name, Index rows, const InitScale& scale,
                          bool has_latent) {
  if (is_of(name, "router")) {  // its vectors are biases and scales, but for one expert's weight
    return rows > 1 || name.word == "weight" ? scale.router : 1.0;
  }
  if (is_of(name, "latent")) {
    return name.word == "up" ? scale.output : 1.0;
  }
  if (name.word == "down") {
    return has_latent && is_of(name, "experts") ? 1.0 : scale.output;
  }
  return name.word == "gate" || name.word == "up" ? scale.input : 1.0;
}

}  // namespace detail

/// Multiplies the weights of a fresh layer, in place; biases and all else stay as they are. Throws
/// std::invalid_argument if the scale breaks its rules.
template <Parametrised Layer>
void scale_init(Layer& layer, const InitScale& scale) {
  scale.validate();
  bool has_latent = false;
  if constexpr (requires { layer.latent().has_value(); }) {
    has_latent = layer.latent().has_value();
  }
  walk_params(layer, ParameterName{}, [&](const ParameterName& name, auto& tensor) {
    using T = typename std::remove_cvref_t<decltype(tensor)>::Scalar;
    const double factor = detail::init_factor(name, tensor.rows(), scale, has_latent);
    const bool scaled = factor < 1.0 || factor > 1.0;
    for (Index i = 0; scaled && i < tensor.size(); ++i) {
      tensor.data()[i] = kernels::convert<T>(factor * kernels::convert<double>(tensor.data()[i]));
    }
  });
}

/// Draws tensors anew from N(0, d^2), with the deviation d = deviation_of(name, tensor), a
/// std::optional<double>; one without it stays as it is. Models with a fixed deviation have 0.02,
/// say. Throws std::invalid_argument on a deviation that is negative or not finite, before any is
/// drawn.
template <Parametrised Layer, class DeviationOf>
void draw_init(Layer& layer, std::uint64_t seed, DeviationOf&& deviation_of) {
  std::vector<std::optional<double>> deviations;
  walk_params(layer, ParameterName{}, [&](const ParameterName& name, auto& tensor) {
    std::optional<double>& deviation = deviations.emplace_back();
    if (const auto& constant = tensor; tensor.size() > 0) {
      deviation = deviation_of(name, constant);
    }
    if (deviation && !(std::isfinite(*deviation) && *deviation >= 0.0)) {
      detail::fail("draw_init: the deviation of ", name.text(), " is ", *deviation,
                   ", expected finite and at least 0");
    }
  });
  std::uint64_t stream = 0;
  walk_params(layer, ParameterName{}, [&](const ParameterName&, auto& tensor) {
    using T = typename std::remove_cvref_t<decltype(tensor)>::Scalar;
    const std::optional<double>& deviation = deviations[stream];
    const detail::CounterRandom random(seed, stream++);
    for (Index i = 0; deviation && i < tensor.size(); ++i) {
      tensor.data()[i] =
          kernels::convert<T>(*deviation * random.normal(static_cast<std::uint64_t>(i)));
    }
  });
}

}  // namespace moe::inline MOE_INSTRUCTION_SET
