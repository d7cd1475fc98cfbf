// SPDX-License-Identifier: Apache-2.0
// compiled::PackedLayer: the inference form of a layer, from the library moe::compiled. It is used
// as moe::PackedLayer is.
#pragma once

#include <memory>
#include <string_view>
#include <utility>

#include "moe_layer.hpp"
#include "storages.hpp"

namespace moe::inline MOE_INSTRUCTION_SET::compiled {

/// Weights stored as S, one of the list Storages; tokens are float. It is immutable: copies share
/// it, and so may threads, each with its own scratch.
template <class S>
requires(Storages::has<S>) class PackedLayer {
 public:
  struct Scratch : CallMemory<float> {};

  explicit PackedLayer(std::unique_ptr<const boundary::Inference<float>> layer)
      : layer_(std::move(layer)) {}

  Index d_in() const { return layer().facts().d_in; }
  Index d_out() const { return layer().facts().d_out; }
  Index num_experts() const { return layer().facts().num_experts; }
  std::string_view instruction_set() const { return layer().facts().instruction_set; }
  /// Of the packed weights of the experts, the shared one included.
  std::size_t packed_bytes() const { return layer().facts().packed_bytes; }

  /// y (N, d_out) = layer(x (N, d_in)). Throws what the forward of moe::PackedLayer throws.
  void forward(ConstMatrixRef<float> x, MatrixRef<float> y, Scratch& scratch,
               const CallOptions& call = {}) const {
    scratch.fill([&](auto& memory) {
      layer().infer(view_of<float>(x), view_of<float>(y), memory, bytes_of(call));
    });
  }

 private:
  const boundary::Inference<float>& layer() const {
    moe::detail::throw_unless(layer_ != nullptr, "PackedLayer: it was moved from");
    return *layer_;
  }

  std::shared_ptr<const boundary::Inference<float>> layer_;
};

/// The inference form of a layer, in the same instruction set.
template <class S, Scalar T>
PackedLayer<S> pack(const MoELayer<T>& layer) {
  return PackedLayer<S>(layer.layer().pack(Storages::place_of<S>()));
}

}  // namespace moe::inline MOE_INSTRUCTION_SET::compiled
