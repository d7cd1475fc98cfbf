// SPDX-License-Identifier: Apache-2.0
// A layer -> a directory in the names and the layout of a family: what load_layer() reads, and
// every other reader of that family.
#pragma once

#include <filesystem>
#include <functional>
#include <iterator>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "../experts/zero.hpp"
#include "../layers/moe_layer.hpp"
#include "../layers/product_key_layer.hpp"
#include "layer_names.hpp"
#include "place.hpp"
#include "read_back.hpp"
#include "write_model.hpp"

namespace moe::inline MOE_INSTRUCTION_SET::io {

struct SaveOptions {
  std::string layer = "model.layers.0.";  ///< what stands before the family's names
  std::optional<DType> dtype = {};  ///< of all tensors: F64, F32, F16 or BF16; none: their own
  std::uint64_t shard_bytes = 5'000'000'000;  ///< more than that go to several files
};

namespace detail {

/// Data of the tensor at the place = parameter, rounded once.
template <class To, class T>
void fill_place(ConstMatrixRef<T> parameter, const Place& place, std::byte* data) {
  for (Index row = 0; row < parameter.rows(); ++row) {
    for (Index col = 0; col < parameter.cols(); ++col) {
      const To value = kernels::convert<To>(parameter(row, col));
      const Index at = place.first + row * place.row_step + col * place.col_step;
      std::memcpy(data + at * static_cast<Index>(sizeof(To)), static_cast<const void*>(&value),
                  sizeof(To));
    }
  }
}

/// The table by which a router selects, as integers of 64 bits; none of a router without.
template <class RouterT>
std::vector<TensorToWrite> table_of(const RouterT& router, const LayerNames& names) {
  if constexpr (requires { router.rule().table(); }) {
    const ExpertTable& table = router.rule().table();
    if (table.size() > 0) {
      return {
          {names.table(), DType::I64, {table.rows(), table.cols()}, [&](std::span<std::byte> to) {
             const Matrix<std::int64_t> wide = table.template cast<std::int64_t>();
             std::memcpy(to.data(), wide.data(), to.size());
           }}};
    }
  }
  return {};
}

/// Throws std::invalid_argument if there are experts that are of rank one, compute nothing or share
/// small ones, as the family has not.
template <class RouterT, class Set>
ExpertCounts counts_of(const RouterT& router, const Set& set, const Family& family) {
  ExpertCounts counts{.ranked = set.num_experts()};
  constexpr bool rank_one = requires { set.shapes().down; };
  moe::detail::throw_unless(rank_one != family.rank_one.down.empty(),
                            "save_layers: the experts are ", rank_one ? "" : "not ",
                            "of rank one, expected ", rank_one ? "others" : "such", " of family ",
                            family.name());
  if constexpr (requires { set.zero(); }) {
    const ZeroComputation& zero = set.zero();
    const bool has_copies = !family.copies.keys.empty();
    const bool has_zeros = family.zeros.omitted > 0.0;
    moe::detail::throw_unless(
        zero.constants == 0 && (zero.copies == 0 || has_copies) && (zero.zeros == 0 || has_zeros),
        "save_layers: there are ", zero.constants, " constant, ", zero.copies, " copy and ",
        zero.zeros, " zero experts, expected ",
        has_copies  ? "copies alone"
        : has_zeros ? "zero experts alone"
                    : "none",
        " of family ", family.name());
    counts.ranked -= zero.num_experts();
  }
  if constexpr (requires { set.adjugates(); }) {
    counts.adjugates = set.adjugates().num_experts();
  }
  moe::detail::throw_unless((counts.adjugates > 0) == (family.adjugates.layout.names != nullptr),
                            "save_layers: there are ", counts.adjugates,
                            " small experts that others share, expected ",
                            counts.adjugates > 0 ? "none" : "some", " of family ", family.name());
  if constexpr (requires { router.rule().config().selection.always; }) {
    counts.always = router.rule().config().selection.always;
    counts.ranked -= counts.always;
  }
  if (!family.second.router.empty()) {
    moe::detail::throw_unless(counts.ranked % 2 == 0, "save_layers: there are ", counts.ranked,
                              " experts, expected as many in each of the two sets of family ",
                              family.name());
    counts.second = counts.ranked / 2;
  }
  return counts;
}

/// The tensors of a layer, each filled by all of the parameters that lie in it.
template <class Layer>
std::vector<TensorToWrite> tensors_of(const Layer& layer, const LayerNames& names,
                                      std::optional<DType> dtype) {
  std::map<std::string, TensorToWrite> tensors;
  std::map<std::string, std::vector<std::function<void(std::byte*)>>> parts;
  layer.for_each_parameter([&](const std::string& name, const auto& parameter) {
    using P = typename std::decay_t<decltype(parameter)>::Scalar;
    const DType type = dtype.value_or(dtype_of<P>);
    for (const PartPlace& part : names.parts(name, {parameter.rows(), parameter.cols()})) {
      const Place& place = part.place;
      const auto tensor =
          tensors.try_emplace(place.tensor, TensorToWrite{place.tensor, type, place.shape, {}});
      moe::detail::throw_unless(tensor.first->second.shape == place.shape, "save_layers: ", name,
                                " is of another size than what lies in ", place.tensor, ", too");
      parts[place.tensor].push_back([&parameter, part, type](std::byte* data) {
        visit_weight_type(type, [&]<class To>(std::type_identity<To>) {
          fill_place<To, P>(part_of(parameter, part), part.place, data);
        });
      });
    }
  });
  std::vector<TensorToWrite> all = table_of(layer.router(), names);
  for (auto& [name, tensor] : tensors) {
    tensor.fill = [fills = std::move(parts[name])](std::span<std::byte> data) {
      for (const auto& fill : fills) {
        fill(data.data());
      }
    };
    all.push_back(std::move(tensor));
  }
  return all;
}

/// What save_layers() does, for layers of any type.
template <class Layer>
void save_all(const std::map<std::string, const Layer*>& layers, const Family& family,
              const std::filesystem::path& directory, const SaveOptions& options) {
  moe::detail::throw_unless(!layers.empty(), "save_layers: no layer, expected at least 1");
  if (options.dtype) {
    moe::detail::check_enum(*options.dtype, DType::U64, "SaveOptions: dtype");
  }
  moe::detail::throw_unless(!options.dtype || visit_weight_type(*options.dtype, [](auto) {}),
                            "SaveOptions: dtype = ", name(options.dtype.value_or(DType::F32)),
                            ", expected F64, F32, F16 or BF16");
  const auto blocks = words(family.blocks);
  const std::string block = blocks.empty() ? "" : std::string(blocks.front()) + '.';
  std::vector<TensorToWrite> all;
  for (const auto& [prefix, layer] : layers) {
    layer->check_params({});
    const LayerNames names(family, prefix + block,
                           counts_of(layer->router(), layer->experts(), family),
                           [](const std::string&) { return false; });
    auto tensors = tensors_of(*layer, names, options.dtype);
    check_read_back(*layer, family, directory, prefix);
    std::move(tensors.begin(), tensors.end(), std::back_inserter(all));
  }
  write_model(cut_shards(std::move(all), options.shard_bytes), directory);
}

}  // namespace detail

/// Layers of one model by what stands before their names, as SaveOptions::layer, which is not read.
template <Real T, class RouterT = Router<T>, class E = Expert<T>>
using LayersToSave = std::map<std::string, const MoELayer<T, RouterT, E>*>;

/// Writes model.safetensors, or shards and then their index, as layers of a model of the family;
/// config.json is the caller's. Throws std::invalid_argument if the family has no name for one of
/// the parameters, if a config.json that is there already is of another family (beside a row of the
/// user's own it may say anything), or if readers of the family, with that config.json, would
/// refuse a layer or take it for another one; FormatError where a file cannot be written or would
/// not be read: shards beside a model.safetensors of before. The model that was there stays until
/// the new one is whole and takes its place at once, whether the disk runs full or the process
/// dies; shards of it go then.
template <Real T, class RouterT = Router<T>, class E = Expert<T>>
void save_layers(const LayersToSave<T, RouterT, E>& layers, const Family& family,
                 const std::filesystem::path& directory, const SaveOptions& options = {}) {
  detail::save_all(layers, family, directory, options);
}

/// The same of layers of product keys.
template <Real T>
void save_layers(const std::map<std::string, const ProductKeyLayer<T>*>& layers,
                 const Family& family, const std::filesystem::path& directory,
                 const SaveOptions& options = {}) {
  detail::save_all(layers, family, directory, options);
}

/// One layer as the whole of a model's file, over what was there.
template <Real T, class RouterT, class E>
void save_layer(const MoELayer<T, RouterT, E>& layer, const Family& family,
                const std::filesystem::path& directory, const SaveOptions& options = {}) {
  save_layers<T, RouterT, E>({{options.layer, &layer}}, family, directory, options);
}

template <Real T>
void save_layer(const ProductKeyLayer<T>& layer, const Family& family,
                const std::filesystem::path& directory, const SaveOptions& options = {}) {
  detail::save_all<ProductKeyLayer<T>>({{options.layer, &layer}}, family, directory, options);
}

}  // namespace moe::inline MOE_INSTRUCTION_SET::io
