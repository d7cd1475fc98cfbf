// SPDX-License-Identifier: Apache-2.0
// How far the weights of a packed layer are from those that it was packed of, tensor by tensor:
// what a storage costs in accuracy, whatever tokens come.
#pragma once

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "packed_layer.hpp"

namespace moe::inline MOE_INSTRUCTION_SET {

/// Of one matrix of weights. All three figures in the unit of the weights; `rms` and `largest` are
/// NaN if a weight, or what it is stored as, is not finite: there are `not_finite` of these.
struct PackError {
  std::string tensor;       ///< as for_each_parameter names it: "experts.3.up", "shared.down"
  Index size = 0;           ///< weights
  Index not_finite = 0;     ///< of them
  double rms = 0.0;         ///< root of the mean of (stored - weight)^2
  double largest = 0.0;     ///< of |stored - weight|
  double weight_rms = 0.0;  ///< root of the mean of weight^2

  /// rms of the error over that of the weights.
  double relative() const { return rms <= 0.0 ? 0.0 : rms / weight_rms; }
};

/// Of a matrix of weights, and of what it is stored as. Throws std::invalid_argument if their
/// shapes differ.
template <Real T, Real W>
PackError pack_error(const std::string& tensor, const Matrix<T>& weight, const Matrix<W>& stored) {
  detail::check_shape(stored, weight.rows(), weight.cols(), tensor.c_str());
  PackError error{.tensor = tensor, .size = weight.size()};
  double squares = 0.0, weight_squares = 0.0;
  for (Index i = 0; i < weight.size(); ++i) {
    const double was = static_cast<double>(weight.data()[i]);
    const double off = static_cast<double>(stored.data()[i]) - was;
    error.not_finite += std::isfinite(off) ? 0 : 1;
    error.largest = (std::max)(error.largest, std::abs(off));
    squares += off * off;
    weight_squares += was * was;
  }
  const double size = static_cast<double>((std::max)(error.size, Index(1)));
  error.rms = std::sqrt(squares / size);
  error.weight_rms = std::sqrt(weight_squares / size);
  if (error.not_finite > 0) {
    error.rms = error.largest = std::nan("");
  }
  return error;
}

/// Of gate, up and down of every expert, in this order, and those of the shared one; biases and all
/// other tensors are not in the storage. Throws std::invalid_argument unless the packed layer has
/// the experts of the layer, by number and shapes.
template <Storage S, Real T, class RouterT, class E, class PackedRouter>
requires std::same_as<typename SetOf<T, E>::type, FfnExperts<T>> std::vector<PackError> pack_errors(
    const MoELayer<T, RouterT, E>& layer,
    const MoELayer<Wide<S>, PackedRouter, PackedExperts<S>>& packed) {
  detail::throw_unless(packed.num_experts() == layer.num_experts() &&
                           packed.shared().has_value() == layer.shared().has_value(),
                       "pack_errors: the packed layer has ", packed.num_experts(), " experts",
                       packed.shared() ? " and a shared one" : "", ", expected ",
                       layer.num_experts(), layer.shared() ? " and a shared one" : "");
  std::vector<PackError> errors;
  const auto add = [&](const auto& expert, const PackedExpert<S>& stored, const std::string& name) {
    const Expert<Wide<S>> unpacked = stored.unpack();
    const auto add_tensor = [&](const char* word, const auto& weight, const auto& as_stored) {
      if (weight.size() + as_stored.size() > 0) {
        errors.push_back(pack_error(name + word, weight, as_stored));
      }
    };
    add_tensor(".gate", expert.params().gate, unpacked.params().gate);
    add_tensor(".up", expert.params().up, unpacked.params().up);
    add_tensor(".down", expert.params().down, unpacked.params().down);
  };
  for (std::size_t e = 0; e < layer.experts().size(); ++e) {
    add(layer.experts()[e], packed.experts()[e], detail::joined("experts.", e));
  }
  if (layer.shared()) {
    add(layer.shared()->expert(), packed.shared()->set()[0], "shared");
  }
  return errors;
}

}  // namespace moe::inline MOE_INSTRUCTION_SET
