// SPDX-License-Identifier: Apache-2.0
// From a path to a layer: load_layer() to one that trains, load_packed() to the inference form.
#pragma once

#include <iterator>
#include <optional>
#include <utility>
#include <vector>

#include "../experts/adjugate.hpp"
#include "../layers/moe_layer.hpp"
#include "../layers/packed_layer.hpp"
#include "../layers/product_key_layer.hpp"
#include "layer_reader.hpp"

namespace moe::inline MOE_INSTRUCTION_SET::io {

namespace detail {

/// A set of feed-forwards, or the AdjugateExperts or ZeroExperts of the config around it. The list
/// has the experts, and behind them the small ones that they share.
template <class To, class Set, class E>
To set_of(std::vector<E> list, const LayerConfig& config) {
  const auto own = list.begin() + config.num_feed_forwards();
  std::vector<E> adjugates(std::make_move_iterator(own), std::make_move_iterator(list.end()));
  list.erase(own, list.end());
  Set set(std::move(list));
  if constexpr (std::same_as<To, Set>) {
    return set;
  } else if constexpr (requires(const To& to) { to.adjugates(); }) {
    return To(std::move(set), Set(std::move(adjugates)), config.adjugate.scale);
  } else {
    return To(std::move(set), config.zero, 0);
  }
}

}  // namespace detail

/// A decoder layer's MoE block, its weights rounded once to T where the file's are wider, or are in
/// codes and scales (encodings.hpp). Throws
/// FormatError, naming file, tensor, found and expected, unless the block is complete, of the
/// shapes that config.json says, and without a tensor that the family does not know. RouterT is
/// Router, unless the family has a router of another type: NormRouter<T>, SparseMixerRouter<T>,
/// SecondExpertRouter<T> or StateRouter<T>. E is ZeroExperts<T> where experts compute nothing
/// (LongCat-Flash, ZAYA1), and may be so elsewhere, but for Inkling; and AdjugateExperts<T> where
/// they share small ones (Grove MoE).
template <Real T, class RouterT = Router<T>, class E = Expert<T>>
MoELayer<T, RouterT, E> load_layer(Checkpoint& model, Index layer) {
  using Layer = MoELayer<T, RouterT, E>;
  const LayerReader reader(model, layer);
  reader.template check_set<typename Layer::Set>();
  const LayerConfig& config = reader.config();
  std::vector<Expert<T>> experts;
  const Index count = config.num_feed_forwards() + config.adjugate.count;
  experts.reserve(static_cast<std::size_t>(count));
  for (Index e = 0; e < count; ++e) {
    experts.push_back(reader.expert<T>(e));
  }
  std::optional<DenseFfn<T>> shared;
  if (config.shared) {
    shared.emplace(reader.shared<T>());
  }
  return Layer(reader.router<RouterT>(),
               detail::set_of<typename Layer::Set, FfnExperts<T>>(std::move(experts), config),
               config.options(), std::move(shared), reader.extras<T>());
}

/// Of a directory with config.json and model.safetensors, or shards and their index; or of a GGUF
/// file, or the first of its parts.
template <Real T, class RouterT = Router<T>, class E = Expert<T>>
MoELayer<T, RouterT, E> load_layer(const std::filesystem::path& path, Index layer,
                                   const CheckpointOptions& options = {}) {
  Checkpoint model(path, options);
  return load_layer<T, RouterT, E>(model, layer);
}

/// The same of a family whose experts are of rank one (Doge), that reads its keys as the published
/// weights want it: KeyReading::across_batch.
template <Real T>
ProductKeyLayer<T> load_product_key_layer(Checkpoint& model, Index layer) {
  const LayerReader reader(model, layer);
  auto router = reader.router<ProductKeyRouter<T>>();
  std::optional<DenseFfn<T>> shared;
  if (reader.config().shared) {
    shared.emplace(reader.shared<T>());
  }
  return {std::move(router), reader.rank_one<T>(), std::move(shared)};
}
template <Real T>
ProductKeyLayer<T> load_product_key_layer(const std::filesystem::path& path, Index layer,
                                          const CheckpointOptions& options = {}) {
  Checkpoint model(path, options);
  return load_product_key_layer<T>(model, layer);
}

namespace detail {

/// Of an expert, or of the shared one: through the float that holds the file's weights, so that
/// they are rounded once, to S, but for those that are `coded`.
template <Storage S, class... Coded>
PackedExpert<S> packed_floats(const LayerReader& reader, std::optional<Index> number,
                              const Coded&... coded) {
  const auto read = [&]<class T>(std::type_identity<T>) {
    return PackedExpert<S>(number ? reader.expert<T>(*number) : reader.shared<T>(), coded...);
  };
  return reader.is_double(number) ? read(std::type_identity<double>{})
                                  : read(std::type_identity<Wide<S>>{});
}

/// The same with its codes and scales where the file's are those of S.
template <Storage S>
PackedExpert<S> packed_expert(const LayerReader& reader, std::optional<Index> number) {
  if constexpr (requires { typename PackedMatrix<S>::Format; }) {
    const auto coded = reader.coded_expert<typename PackedMatrix<S>::Format>(number);
    return coded.has_up() && coded.has_down() ? PackedExpert<S>(coded)
                                              : packed_floats<S>(reader, number, coded);
  } else {
    return packed_floats<S>(reader, number);
  }
}

}  // namespace detail

/// pack<S>(load_layer()) expert by expert: of memory it takes the packed layer and one expert.
/// Where the files have gate and up of an expert, or down, in codes and scales that S holds (MXFP4
/// in mxfp4, symmetric integers in q4 and q8; of GGUF Q4_0 in q4, Q4_K in q4_k, Q8_0 in q8) it
/// keeps them, bit for bit. E is ZeroExperts<Wide<S>, PackedExperts<S>> where load_layer() needs a
/// ZeroExperts, and likewise an AdjugateExperts.
template <Storage S, class RouterT = Router<Wide<S>>, class E = PackedExperts<S>>
MoELayer<Wide<S>, RouterT, E> load_packed(Checkpoint& model, Index layer) {
  const LayerReader reader(model, layer);
  reader.template check_set<E>();
  const LayerConfig& config = reader.config();
  std::vector<PackedExpert<S>> experts;
  const Index count = config.num_feed_forwards() + config.adjugate.count;
  experts.reserve(static_cast<std::size_t>(count));
  for (Index e = 0; e < count; ++e) {
    experts.push_back(detail::packed_expert<S>(reader, e));
  }
  std::optional<PackedFfn<S>> shared;
  if (config.shared) {
    std::vector<PackedExpert<S>> one;
    one.push_back(detail::packed_expert<S>(reader, std::nullopt));
    shared.emplace(PackedExperts<S>(std::move(one)));
  }
  return MoELayer<Wide<S>, RouterT, E>(
      reader.router<RouterT>(), detail::set_of<E, PackedExperts<S>>(std::move(experts), config),
      config.options(), std::move(shared), reader.extras<Wide<S>>());
}

template <Storage S, class RouterT = Router<Wide<S>>, class E = PackedExperts<S>>
MoELayer<Wide<S>, RouterT, E> load_packed(const std::filesystem::path& directory, Index layer,
                                          const CheckpointOptions& options = {}) {
  Checkpoint model(directory, options);
  return load_packed<S, RouterT, E>(model, layer);
}

}  // namespace moe::inline MOE_INSTRUCTION_SET::io
