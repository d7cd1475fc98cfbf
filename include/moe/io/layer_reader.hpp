// SPDX-License-Identifier: Apache-2.0
// One layer of a Checkpoint, checked as a whole before any of it is read: every parameter has its
// tensor, of its shape, or those of its codes and scales, and the MoE block has no tensor that is
// nobody's.
#pragma once

#include <optional>
#include <set>
#include <string>
#include <utility>

#include "../experts/packed_expert.hpp"
#include "checkpoint.hpp"
#include "coded_weight.hpp"
#include "gguf_codes.hpp"
#include "layer_shapes.hpp"
#include "place.hpp"

namespace moe::inline MOE_INSTRUCTION_SET::io {

class LayerReader {
 public:
  /// Throws FormatError unless the layer is complete and has no more. The model must outlive it.
  LayerReader(Checkpoint& model, Index layer)
      : model_(&model),
        config_(model.layer_config(layer)),
        names_(model.family(), model.layer_prefix(layer) + model.block_of(layer), config_.counts(),
               [&](const std::string& name) { return contains_weight(model.files(), name); }) {
    check_layer(layer);
  }

  const LayerConfig& config() const { return config_; }

  /// Throws FormatError if the experts are of rank one, or some of them compute nothing, share
  /// small ones or have weights on hidden rows, and a layer of this set cannot have such; or if
  /// none shares any, and it must.
  template <class Set>
  void check_set() const {
    fail_rank_one();
    if constexpr (!requires(const Set& set) { set.zero(); }) {
      fail_zero_experts();
    }
    check_adjugates(requires(const Set& set) { set.adjugates(); });
    if constexpr (!WeighsHidden<Set>) {
      fail_hidden_weights();
    }
  }
  /// Of the type that the family's router is. Throws FormatError if it is another.
  template <class RouterT>
  RouterT router() const {
    check_router_type(FamilyRouter<RouterT>::type);
    RouterT made = FamilyRouter<RouterT>::make(config_, table());
    walk_params(made, {"router"}, [&](const ParameterName& name, auto& tensor) {
      if (tensor.size() > 0) {
        read(name.text(), tensor);
      }
    });
    return made;
  }

  /// Numbers behind those of the experts are of the small ones that they share.
  template <Real T>
  Expert<T> expert(Index number) const {
    const ExpertPlace place = expert_place(number);
    return read_expert<T>(place.name, place.shapes, place.config);
  }
  /// Only where the config has one.
  template <Real T>
  Expert<T> shared() const {
    return read_expert<T>("shared", shared_expert_shapes(config_), config_.shared_expert());
  }
  /// All of them, where they are of rank one.
  template <Real T>
  RankOneExperts<T> rank_one() const {
    return {read_params<RankOneParams<T>>("experts", rank_one_shapes(config_)), config_.expert};
  }
  /// Those that the config has.
  template <Real T>
  LayerExtras<T> extras() const {
    LayerExtras<T> made;
    if (config_.latent) {
      made.latent.emplace(
          read_params<LatentParams<T>>(
              "latent", latent_shapes(*config_.latent, config_.d_model, config_.output_width())),
          *config_.latent);
    }
    if (config_.shared && config_.shared->coefficients) {
      made.coefficients.emplace(read_params<typename Coefficients<T>::Params>(
          "coefficients", coefficient_shapes(config_.d_model)));
    }
    if (config_.output_norm) {
      made.output_norm.emplace(read_params<typename OutputNorm<T>::Params>(
                                   "output_norm", output_norm_shapes(config_.output_width())),
                               *config_.output_norm);
    }
    return made;
  }
  /// An expert, or the shared one, with those of its weights that are exactly in a format F of
  /// codes and scales in the files.
  template <class F>
  CodedExpert<F> coded_expert(std::optional<Index> number) const;
  /// Whether some of an expert's weights, or of the shared one's, have more digits than a float.
  bool is_double(std::optional<Index> number) const;

 private:
  void check_layer(Index layer) const;
  void check_blocks(const Encoding& encoding) const;
  void check_router_type(RouterType wanted) const;
  void fail_rank_one() const;
  void fail_zero_experts() const;
  void fail_hidden_weights() const;
  void check_adjugates(bool set_has_them) const;
  ExpertTable table() const;
  [[noreturn]] void fail_missing(const std::string& tensor) const;

  template <class W>
  void read(const std::string& name, Matrix<W>& parameter) const {
    for (const PartPlace& part : names_.parts(name, {parameter.rows(), parameter.cols()})) {
      if (const auto encoded = encoded_place(model_->files(), part.place)) {
        read_place<W>(*encoded, part_of(parameter, part));
      } else {
        read_part<W>(model_->files().at(part.place.tensor), part, parameter);
      }
    }
  }
  /// The name of an expert's tensors, and what they are.
  struct ExpertPlace {
    std::string name;
    ExpertTensors<Shape> shapes;
    ExpertConfig config;
  };
  ExpertPlace expert_place(std::optional<Index> number) const {
    const Index own = config_.num_feed_forwards();
    if (number && *number >= own) {
      return {detail::joined("adjugates.", *number - own), adjugate_shapes(config_),
              config_.expert};
    }
    return number ? ExpertPlace{detail::joined("experts.", *number),
                                routed_expert_shapes(config_, *number), config_.expert}
                  : ExpertPlace{"shared", shared_expert_shapes(config_), config_.shared_expert()};
  }
  /// The files' pages would otherwise count as memory beside the experts.
  template <Real T>
  Expert<T> read_expert(const std::string& name, const ExpertTensors<Shape>& shapes,
                        const ExpertConfig& config) const {
    Expert<T> expert(read_params<ExpertParams<T>>(name, shapes), config);
    model_->files().release_pages();
    return expert;
  }
  template <class Params, class Shapes>
  Params read_params(const std::string& name, const Shapes& shapes) const {
    Params params;
    Params::for_each(
        [&](std::string_view tensor, auto& parameter, const Shape& shape) {
          parameter.resize(shape.rows, shape.cols);
          if (parameter.size() > 0) {
            read(detail::joined(name, ".", tensor), parameter);
          }
        },
        params, shapes);
    return params;
  }

  Checkpoint* model_;
  LayerConfig config_;
  LayerNames names_;
};

template <class F>
CodedExpert<F> LayerReader::coded_expert(std::optional<Index> number) const {
  const ExpertPlace place = expert_place(number);
  CodedExpert<F> expert{.params = {}, .config = place.config};
  const auto read_tensor = [&]<class M>(std::string_view tensor, M& to, const Shape& shape) {
    const std::string name = detail::joined(place.name, ".", tensor);
    to.resize(shape.rows, shape.cols);
    if (to.size() == 0) {
      return;
    }
    if constexpr (std::same_as<M, CodedMatrix<F>>) {
      const Place at = names_.place(name, shape);
      const auto encoded = encoded_place(model_->files(), at);
      std::optional<M> coded = encoded ? coded_weight<F>(*encoded, shape)
                                       : coded_blocks<F>(model_->files().at(at.tensor), at, shape);
      to = coded ? std::move(*coded) : M();
    } else {
      read(name, to);
    }
  };
  decltype(expert.params)::for_each(read_tensor, expert.params, place.shapes);
  return expert;
}

inline bool LayerReader::is_double(std::optional<Index> number) const {
  const ExpertPlace place = expert_place(number);
  bool found = false;
  detail::for_each_tensor(
      place.name, place.shapes, [&](const std::string& name, const Shape& shape) {
        const std::string tensor = names_.place(name, shape).tensor;
        found = found || !model_->files().contains(tensor) ||
                !detail::is_one_of(model_->files().at(tensor).view.dtype, "F32 F16 BF16");
      });
  return found;
}

inline void LayerReader::check_router_type(RouterType wanted) const {
  if (config_.router_type != wanted) {
    throw FormatError(
        model_->config().file(), "", std::nullopt,
        detail::joined("family ", model_->family().name(), " has a ", name(config_.router_type),
                       ", expected a layer of it, not of ", name(wanted)));
  }
}

inline void LayerReader::fail_rank_one() const {
  if (config_.is_rank_one()) {
    throw FormatError(model_->config().file(), "", std::nullopt,
                      detail::joined("family ", model_->family().name(),
                                     " has experts of rank one, expected a ProductKeyLayer, which "
                                     "load_product_key_layer() makes"));
  }
}

inline void LayerReader::fail_zero_experts() const {
  if (config_.zero.num_experts() > 0) {
    throw FormatError(
        model_->config().file(), "", std::nullopt,
        detail::joined("family ", model_->family().name(), " has ", config_.zero.num_experts(),
                       " experts that compute nothing, expected a layer of "
                       "ZeroExperts"));
  }
}

inline void LayerReader::fail_hidden_weights() const {
  if (config_.weight_on == WeightOn::hidden) {
    throw FormatError(model_->config().file(), "", std::nullopt,
                      detail::joined("family ", model_->family().name(),
                                     " has weights on hidden rows, expected a layer of Expert, "
                                     "not of ZeroExperts"));
  }
}

inline void LayerReader::check_adjugates(bool set_has_them) const {
  const Index count = config_.adjugate.count;
  if ((count > 0) != set_has_them) {
    throw FormatError(
        model_->config().file(), "", std::nullopt,
        detail::joined("family ", model_->family().name(), " has ", count,
                       " small experts that others share, expected ",
                       count > 0 ? "a layer of AdjugateExperts" : "no layer of AdjugateExperts"));
  }
}

/// Empty where the layer does not select by one.
inline ExpertTable LayerReader::table() const {
  if (config_.router.selection.vocabulary == 0) {
    return {};
  }
  const FileTensor tensor = model_->files().at(names_.table());
  return read_expert_table(tensor, config_.router.selection.vocabulary, config_.num_experts,
                           config_.top_k);
}

inline void LayerReader::check_layer(Index layer) const {
  TensorFiles& files = model_->files();
  std::set<std::string> used;
  const auto use = [&](const std::string& name, const Shape& shape) {
    for (const PartPlace& part : names_.parts(name, shape)) {
      if (const auto encoded = encoded_place(files, part.place)) {
        check_blocks(encoded->weight.encoding());
        const std::vector<std::string>& tensors = encoded->weight.tensors();
        used.insert(tensors.begin(), tensors.end());
        continue;
      }
      if (!files.contains(part.place.tensor)) {
        fail_missing(part.place.tensor);
      }
      check_place(files.at(part.place.tensor), part.place);
      used.insert(part.place.tensor);
    }
  };
  // First, as the others' shapes are asked of a router that is made: from here on it is of the size
  // of a tensor, and not of any that config.json has.
  use("router.weight", router_weight_shape(config_));
  for_each_shape(config_, use);
  if (config_.router.selection.vocabulary > 0) {
    if (!files.contains(names_.table())) {
      fail_missing(names_.table());
    }
    used.insert(names_.table());
  }
  const std::string block = model_->layer_prefix(layer) + std::string(model_->block_of(layer));
  for (const std::string_view name : detail::words(model_->family().unused)) {
    used.insert(block + std::string(name));
  }
  const std::vector<std::string> left = left_over(model_->family(), model_->layer_prefix(layer),
                                                  model_->block_of(layer), files.names(), used);
  if (!left.empty()) {
    throw FormatError(files.at(left.front()).file, left.front(), std::nullopt,
                      detail::joined("no parameter of family ", model_->family().name(),
                                     " with this config, and ", left.size() - 1,
                                     " more like it, expected none in an MoE block"));
  }
}

/// Blocks of another size would need other scales, but not always another number of them.
inline void LayerReader::check_blocks(const Encoding& encoding) const {
  constexpr std::string_view key = "quantization_config.weight_block_size";
  const Index sides[] = {encoding.group_rows, encoding.group};
  for (Index side = 0; side < 2 && encoding.group_rows > 1; ++side) {
    const Index found = model_->config().size(key, sides[side], side);
    if (found != sides[side]) {
      model_->config().fail(key, detail::joined(found), detail::joined(sides[side]));
    }
  }
}

inline void LayerReader::fail_missing(const std::string& tensor) const {
  const std::string begin = tensor.substr(0, tensor.rfind(".weight"));
  for (const char* end : {".weight_packed", ".qweight", "_blocks"}) {
    if (model_->files().contains(begin + end)) {
      throw FormatError(model_->files().file(), tensor, std::nullopt,
                        detail::joined("no tensor of this name but a quantised one, ",
                                       printable(begin + end), ", expected floats"));
    }
  }
  throw FormatError(
      model_->files().file(), tensor, std::nullopt,
      detail::joined("no tensor of this name, expected by family ", model_->family().name()));
}

}  // namespace moe::inline MOE_INSTRUCTION_SET::io
