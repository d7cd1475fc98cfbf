// SPDX-License-Identifier: Apache-2.0
// The inference form of a layer: the same pipeline around experts whose weights were packed once,
// in any storage. It is immutable and may be shared between threads, each with its own scratch.
#pragma once

#include <optional>

#include "moe_layer.hpp"

namespace moe::inline MOE_INSTRUCTION_SET {

/// A layer with weights stored as S, for tokens in Wide<S>.
template <Storage S, RouterLike<Wide<S>> RouterT = Router<Wide<S>>>
using PackedLayer = MoELayer<Wide<S>, RouterT, PackedExperts<S>>;

/// A router for tokens in T: the cast that it offers, or a copy of one that takes them.
template <Real T, class RouterT>
auto router_for(const RouterT& router) {
  if constexpr (requires { router.template cast<T>(); }) {
    return router.template cast<T>();
  } else {
    static_assert(
        RouterLike<RouterT, T>,
        "the router takes tokens of another scalar than the packed layer: give it, or the "
        "gate and rule of a GatedRouter, a member cast<T>() that returns one for T");
    return router;
  }
}

/// The inference form of a layer of feed-forwards, with weights stored as S: any router, the user's
/// own included. For float and double the bits are those of the layer. Throws std::invalid_argument
/// unless the layer's parameters have their shapes.
template <Storage S, Real T, class RouterT, class E>
requires std::same_as<typename SetOf<T, E>::type, FfnExperts<T>>
auto pack(const MoELayer<T, RouterT, E>& layer) {
  layer.check_params({});
  auto router = router_for<Wide<S>>(layer.router());
  using Packed = PackedLayer<S, decltype(router)>;
  std::optional<PackedFfn<S>> shared;
  if (layer.shared()) {
    shared.emplace(PackedExperts<S>(layer.shared()->set()));
  }
  return Packed(std::move(router), PackedExperts<S>(layer.experts()), layer.options(),
                std::move(shared), layer.extras().template cast<Wide<S>>());
}

/// The layer again, with its weights as they are stored: rounded if S is narrower than they were.
template <Storage S, class RouterT>
auto unpack(const MoELayer<Wide<S>, RouterT, PackedExperts<S>>& packed) {
  using W = Wide<S>;
  std::optional<DenseFfn<W>> shared;
  if (packed.shared()) {
    shared.emplace(std::move(packed.shared()->set().unpack().front()));
  }
  return MoELayer<W, RouterT>(packed.router(), packed.experts().unpack(), packed.options(),
                              std::move(shared), packed.extras());
}

/// The layer with its routed experts in a store. Throws std::invalid_argument unless there are as
/// many, of its sizes and config.
template <Storage S, class RouterT>
MoELayer<Wide<S>, RouterT, OffloadedExperts<S>> offload(
    const MoELayer<Wide<S>, RouterT, PackedExperts<S>>& packed, OffloadedExperts<S> experts) {
  const auto own = ExpertExtent<S>::of(packed.experts().expert(0));
  const ExpertExtent<S>& stored = experts.extent();
  detail::throw_unless(experts.num_experts() == packed.num_experts(),
                       "offload: the number of experts = ", experts.num_experts(),
                       ", expected the layer's, ", packed.num_experts());
  const auto& of_layer = packed.experts();
  detail::throw_unless(experts.d_in() == of_layer.d_in() && experts.d_out() == of_layer.d_out(),
                       "offload: the experts are ", experts.d_in(), " to ", experts.d_out(),
                       " wide, expected as the layer's, ", of_layer.d_in(), " to ",
                       of_layer.d_out());
  detail::throw_unless(stored.d_ff() == own.d_ff(),
                       "offload: d_ff of the experts = ", stored.d_ff(), ", expected the layer's, ",
                       own.d_ff());
  detail::throw_unless(stored.config() == own.config(),
                       "offload: the experts have another ExpertConfig than the layer's, expected "
                       "the same");
  return {packed.router(), std::move(experts), packed.options(), packed.shared(), packed.extras()};
}

/// Memory of the packed weights of the experts, the shared one included.
template <Storage S, class RouterT>
std::size_t packed_bytes(const MoELayer<Wide<S>, RouterT, PackedExperts<S>>& packed) {
  return packed.experts().bytes() + (packed.shared() ? packed.shared()->set().bytes() : 0);
}

}  // namespace moe::inline MOE_INSTRUCTION_SET
