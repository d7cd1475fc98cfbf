// SPDX-License-Identifier: Apache-2.0
// A family and a decoder layer -> the Place of each of our parameters in its files, whichever of
// its forms they are in: the family's own names, the fused ones of transformers 5, or those of one
// projection each that llm-compressor writes. And what such a layer has of which nobody asked.
#pragma once

#include <functional>
#include <set>
#include <string>
#include <vector>

#include "family.hpp"

namespace moe::inline MOE_INSTRUCTION_SET::io {

/// Of one layer. `block` is what stands before its names: "model.layers.3.mlp.".
class LayerNames {
 public:
  using Exists = std::function<bool(const std::string&)>;

  /// Where there are several forms, the first that `exists`, else the family's own.
  LayerNames(const Family& family, std::string block, const ExpertCounts& counts,
             const Exists& exists);

  /// Of "router.weight", "experts.3.up", "shared.down_bias", ... Throws std::invalid_argument if
  /// the family has no such tensor.
  Place place(const std::string& parameter, Shape shape) const;
  /// Where the parts of a parameter are that lie in several tensors, or its one place. Throws
  /// likewise.
  std::vector<PartPlace> parts(const std::string& parameter, Shape shape) const;
  /// Of the table of experts by the token's id. Throws likewise.
  std::string table() const { return full_name(router_.table, "table of experts"); }

 private:
  struct Ffn {
    std::string prefix;
    const FfnNames* names = nullptr;
  };

  struct Router {
    std::string weight, bias, selection_bias, norm_scale, expert_scale, table;
  };
  struct Latent {
    std::string down, up, norm;
  };
  struct State {
    std::string down, scale, norm, first, second;
  };

  std::string full_name(const std::string& name, std::string_view parameter) const;
  static const TensorRule& rule_of(const FfnNames& names, std::string_view tensor);
  std::string first_of(std::string_view alternatives, const Exists& exists) const;
  /// Of a tensor of the router.
  std::string router_name(std::string_view tensor) const;
  Ffn choose(const std::vector<Ffn>& forms, const Exists& exists) const;
  /// An expert of so many in the same tensors.
  struct OneOf {
    Index number, count;
  };
  /// Of the routers of two sets, each from its place among the experts.
  std::vector<PartPlace> router_parts(std::string_view tensor, Shape shape) const;
  Place place_in(const Ffn& ffn, const std::string& parameter, std::string_view tensor, Shape shape,
                 std::optional<OneOf> expert) const;

  std::string block_;
  ExpertCounts counts_;
  std::string family_, output_gate_, coefficients_, output_norm_;
  std::string rank_one_down_, rank_one_up_;  // empty but for product keys
  Router router_;
  Latent latent_;
  State state_;
  Ffn experts_, second_, always_, adjugates_, shared_;
  std::string second_router_, second_bias_;  // empty without a second set
  bool fused_sets_ = false;
};

namespace detail {

/// "experts.*." and 3: "experts.3."
inline std::string with_number(std::string_view prefix, Index number) {
  const std::size_t star = prefix.find('*');
  return star == std::string_view::npos
             ? std::string(prefix)
             : joined(prefix.substr(0, star), number, prefix.substr(star + 1));
}

}  // namespace detail

inline LayerNames::LayerNames(const Family& family, std::string block, const ExpertCounts& counts,
                              const Exists& exists)
    : block_(std::move(block)),
      counts_(counts),
      family_(family.name()),
      coefficients_(family.shared.coefficients),
      output_norm_(family.output_norm),
      rank_one_down_(family.rank_one.down),
      rank_one_up_(family.rank_one.up),
      always_{std::string(family.always_chosen.layout.prefix), family.always_chosen.layout.names},
      adjugates_{std::string(family.adjugates.layout.prefix), family.adjugates.layout.names} {
  const RouterNames& router = family.router;
  router_ = {first_of(router.weight, exists),         first_of(router.bias, exists),
             first_of(router.selection_bias, exists), first_of(router.norm_scale, exists),
             first_of(router.expert_scale, exists),   first_of(router.table, exists)};
  latent_ = {first_of(family.latent.down, exists), first_of(family.latent.up, exists),
             first_of(family.latent.norm, exists)};
  const StateNames& state = family.state;
  state_ = {std::string(state.down), std::string(state.scale), std::string(state.norm),
            std::string(state.first), std::string(state.second)};
  output_gate_ = first_of(family.shared.output_gate, exists);
  const std::string own(family.experts.prefix);
  const std::string base = own.substr(0, own.find("experts"));  // all of it where that is not in it
  std::vector<Ffn> sets{{own, family.experts.names},
                        {base + "experts.", &layouts::fused},
                        {base + "experts.*.", &layouts::projections}};
  if (family.other_experts.names != nullptr) {
    sets.push_back({std::string(family.other_experts.prefix), family.other_experts.names});
  }
  const SecondSet& second = family.second;
  if (!second.router.empty()) {
    sets[1] = {std::string(second.first_fused.prefix), second.first_fused.names};
    second_router_ = first_of(second.router, exists);
    second_bias_ = second.fused_bias;
  }
  experts_ = choose(sets, exists);
  fused_sets_ = !second.router.empty() && experts_.prefix == sets[1].prefix;
  if (fused_sets_) {
    second_ = {std::string(second.fused.prefix), second.fused.names};
  }
  std::vector<Ffn> forms;
  for (const std::string_view prefix : detail::words(family.shared.prefixes)) {
    forms.push_back({std::string(prefix), family.shared.names});
    forms.push_back({std::string(prefix), &layouts::projections});
  }
  shared_ = forms.empty() ? Ffn{} : choose(forms, exists);
}

inline std::string LayerNames::first_of(std::string_view alternatives, const Exists& exists) const {
  const auto all = detail::words(alternatives);
  for (const std::string_view name : all) {
    if (exists(block_ + std::string(name))) {
      return std::string(name);
    }
  }
  return all.empty() ? std::string() : std::string(all.front());
}

inline LayerNames::Ffn LayerNames::choose(const std::vector<Ffn>& forms,
                                          const Exists& exists) const {
  for (const Ffn& form : forms) {
    if (exists(block_ + detail::with_number(form.prefix, 0) + std::string(form.names->up.name))) {
      return form;
    }
  }
  return forms.front();
}

inline const TensorRule& LayerNames::rule_of(const FfnNames& names, std::string_view tensor) {
  static constexpr TensorRule none_at_all{};
  return tensor == "gate"        ? names.gate
         : tensor == "up"        ? names.up
         : tensor == "down"      ? names.down
         : tensor == "gate_bias" ? names.gate_bias
         : tensor == "up_bias"   ? names.up_bias
         : tensor == "down_bias" ? names.down_bias
                                 : none_at_all;
}

inline std::string LayerNames::full_name(const std::string& name,
                                         std::string_view parameter) const {
  if (name.empty()) {
    throw std::invalid_argument(detail::joined("family ", family_, " has no ", parameter));
  }
  return block_ + name;
}

inline std::string LayerNames::router_name(std::string_view tensor) const {
  const std::pair<std::string_view, const std::string*> own[] = {
      {"weight", &router_.weight},
      {"bias", &router_.bias},
      {"selection_bias", &router_.selection_bias},
      {"norm_scale", &router_.norm_scale},
      {"expert_scale", &router_.expert_scale},
      {"state_scale", &state_.scale},
      {"norm", &state_.norm}};
  for (const auto& [word, name] : own) {
    if (word == tensor) {
      return *name;
    }
  }
  const bool is_bias = tensor.ends_with("_bias");
  const std::string_view linear = tensor.substr(0, tensor.size() - (is_bias ? 5 : 0));
  const std::string before = linear == "down"     ? state_.down
                             : linear == "first"  ? state_.first
                             : linear == "second" ? state_.second
                                                  : std::string();
  return before.empty() ? before : before + (is_bias ? "bias" : "weight");
}

inline Place LayerNames::place(const std::string& parameter, Shape shape) const {
  const std::string tensor = parameter.substr(parameter.rfind('.') + 1);
  if (parameter.starts_with("router.")) {
    const bool is_matrix =
        tensor == "weight" || tensor == "down" || tensor == "first" || tensor == "second";
    return place_of({}, full_name(router_name(tensor), parameter), shape, !is_matrix);
  }
  if (parameter.starts_with("latent.")) {
    const std::string name = tensor == "down" ? latent_.down
                             : tensor == "up" ? latent_.up
                                              : latent_.norm;
    return place_of({}, full_name(name, parameter), shape, tensor == "norm");
  }
  if (parameter.starts_with("coefficients.")) {
    return place_of({}, full_name(coefficients_, parameter) + tensor, shape, tensor == "bias");
  }
  if (parameter == "output_norm.scale") {
    return place_of({}, full_name(output_norm_, parameter), shape, true);
  }
  if (parameter == "shared.output_gate") {
    return place_of({}, full_name(output_gate_, parameter), shape, false);
  }
  if (parameter.starts_with("shared.")) {
    return place_in(shared_, parameter, tensor, shape, std::nullopt);
  }
  if (parameter.starts_with("adjugates.")) {
    const Index number = std::stoll(parameter.substr(10));
    return place_in(adjugates_, parameter, tensor, shape, OneOf{number, counts_.adjugates});
  }
  if (parameter == "experts.down" || parameter == "experts.up") {
    const std::string& name = tensor == "down" ? rank_one_down_ : rank_one_up_;
    return place_of({}, full_name(name, parameter), shape, false);
  }
  if (!parameter.starts_with("experts.")) {
    return place_of({}, full_name("", parameter), shape, false);
  }
  const Index number = std::stoll(parameter.substr(8)), ranked = counts_.ranked;
  if (fused_sets_ && number < ranked) {
    const Index first = ranked - counts_.second;
    return number < first
               ? place_in(experts_, parameter, tensor, shape, OneOf{number, first})
               : place_in(second_, parameter, tensor, shape, OneOf{number - first, counts_.second});
  }
  return number < ranked
             ? place_in(experts_, parameter, tensor, shape, OneOf{number, ranked})
             : place_in(always_, parameter, tensor, shape, OneOf{number - ranked, counts_.always});
}

inline std::vector<PartPlace> LayerNames::parts(const std::string& parameter, Shape shape) const {
  const std::string tensor = parameter.substr(parameter.rfind('.') + 1);
  if (!second_router_.empty() && parameter.starts_with("router.")) {
    return router_parts(tensor, shape);
  }
  const bool is_vector = shape.rows == 1;
  return {{0, is_vector ? shape.cols : shape.rows, place(parameter, shape)}};
}

inline std::vector<PartPlace> LayerNames::router_parts(std::string_view tensor, Shape shape) const {
  const Index second = counts_.second, first = counts_.ranked - second;
  if (tensor == "weight") {
    const TensorRule rule{.order = {.transposed = !fused_sets_}};
    const auto of = [&](const std::string& name, Index count) {
      return place_of(rule, block_ + name, {count, shape.cols}, false);
    };
    return {{0, first, of(router_.weight, first)}, {first, second, of(second_router_, second)}};
  }
  const std::string name = full_name(tensor == "selection_bias" ? router_.selection_bias : "",
                                     detail::joined("router.", tensor));
  if (fused_sets_) {
    return {{0, first, place_of({}, name, {1, first}, true)},
            {first, second, place_of({}, block_ + second_bias_, {1, second}, true)}};
  }
  Place both = place_of({}, name, shape, true);
  both.shape = {2, first};
  return {{0, shape.cols, std::move(both)}};
}

inline Place LayerNames::place_in(const Ffn& ffn, const std::string& parameter,
                                  std::string_view tensor, Shape shape,
                                  std::optional<OneOf> expert) const {
  const TensorRule none_at_all;
  const TensorRule& rule = ffn.names == nullptr ? none_at_all : rule_of(*ffn.names, tensor);
  if (rule.name.empty()) {
    throw std::invalid_argument(detail::joined("family ", family_, " has no ", parameter));
  }
  const bool is_vector = tensor.ends_with("_bias");
  const bool together = expert && ffn.prefix.find('*') == std::string::npos;
  const std::string name = block_ + detail::with_number(ffn.prefix, expert ? expert->number : 0) +
                           std::string(rule.name);
  return together ? place_of(rule, name, shape, is_vector, expert->number, expert->count)
                  : place_of(rule, name, shape, is_vector);
}

namespace detail {

/// Whether a tensor of a decoder layer, named without its prefix, is of the layer's MoE block:
/// below the block or, where that is the layer, below one of the family's names; or an expert's
/// anywhere.
inline bool is_of_block(const Family& family, std::string_view block, std::string_view name) {
  if (!block.empty() && name.starts_with(block)) {
    return true;
  }
  const auto has = [&](std::string_view word) { return name.find(word) != std::string_view::npos; };
  const bool of_gguf = has("exps.") || has("shexp.") || has("exp_probs");
  if ((has("expert") || (of_gguf && !has("norm_exps."))) &&
      name.find("attn") == std::string_view::npos &&
      name.find("attention") == std::string_view::npos) {
    return true;
  }
  const auto begins_like = [&](std::string_view names) {
    for (const std::string_view each : words(names)) {
      const std::size_t point = each.find('.');
      if (point != std::string_view::npos && name.starts_with(each.substr(0, point + 1))) {
        return true;
      }
    }
    return false;
  };
  return block.empty() &&
         (begins_like(family.router.weight) || begins_like(family.experts.prefix) ||
          begins_like(family.shared.prefixes) || begins_like(family.shared.output_gate) ||
          begins_like(family.router.selection_bias) || begins_like(family.router.table) ||
          begins_like(family.latent.down) || begins_like(family.latent.up) ||
          begins_like(family.latent.norm));
}

}  // namespace detail

/// The tensors of a layer's MoE block that are not among `used`. `layer` is "model.layers.3.", and
/// `block` what follows it: "mlp.", or nothing. `names` are sorted.
inline std::vector<std::string> left_over(const Family& family, const std::string& layer,
                                          std::string_view block,
                                          const std::vector<std::string>& names,
                                          const std::set<std::string>& used) {
  std::vector<std::string> left;
  for (auto name = std::lower_bound(names.begin(), names.end(), layer);
       name != names.end() && name->starts_with(layer); ++name) {
    if (!used.contains(*name) &&
        detail::is_of_block(family, block, std::string_view(*name).substr(layer.size()))) {
      left.push_back(*name);
    }
  }
  return left;
}

}  // namespace moe::inline MOE_INSTRUCTION_SET::io
