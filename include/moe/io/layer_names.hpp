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

  std::string full_name(const std::string& name, std::string_view parameter) const;
  static const TensorRule& rule_of(const FfnNames& names, std::string_view tensor);
  std::string first_of(std::string_view alternatives, const Exists& exists) const;
  Ffn choose(const std::vector<Ffn>& forms, const Exists& exists) const;
  /// An expert of so many in the same tensors.
  struct OneOf {
    Index number, count;
  };
  Place place_in(const Ffn& ffn, const std::string& parameter, std::string_view tensor, Shape shape,
                 std::optional<OneOf> expert) const;

  std::string block_;
  ExpertCounts counts_;
  std::string family_, output_gate_;
  Router router_;
  Latent latent_;
  Ffn experts_, always_, shared_;
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
      always_{std::string(family.always_chosen.layout.prefix), family.always_chosen.layout.names} {
  const RouterNames& router = family.router;
  router_ = {first_of(router.weight, exists),         first_of(router.bias, exists),
             first_of(router.selection_bias, exists), first_of(router.norm_scale, exists),
             first_of(router.expert_scale, exists),   first_of(router.table, exists)};
  latent_ = {first_of(family.latent.down, exists), first_of(family.latent.up, exists),
             first_of(family.latent.norm, exists)};
  output_gate_ = first_of(family.shared.output_gate, exists);
  const std::string own(family.experts.prefix);
  const std::string base = own.substr(0, own.find("experts"));  // all of it where that is not in it
  experts_ = choose({{own, family.experts.names},
                     {base + "experts.", &layouts::fused},
                     {base + "experts.*.", &layouts::projections}},
                    exists);
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

inline Place LayerNames::place(const std::string& parameter, Shape shape) const {
  const std::string tensor = parameter.substr(parameter.rfind('.') + 1);
  if (parameter.starts_with("router.")) {
    const std::string name = tensor == "weight"           ? router_.weight
                             : tensor == "bias"           ? router_.bias
                             : tensor == "selection_bias" ? router_.selection_bias
                             : tensor == "norm_scale"     ? router_.norm_scale
                             : tensor == "expert_scale"   ? router_.expert_scale
                                                          : std::string();
    return place_of({}, full_name(name, parameter), shape, tensor != "weight");
  }
  if (parameter.starts_with("latent.")) {
    const std::string name = tensor == "down" ? latent_.down
                             : tensor == "up" ? latent_.up
                                              : latent_.norm;
    return place_of({}, full_name(name, parameter), shape, tensor == "norm");
  }
  if (parameter == "shared.output_gate") {
    return place_of({}, full_name(output_gate_, parameter), shape, false);
  }
  if (parameter.starts_with("shared.")) {
    return place_in(shared_, parameter, tensor, shape, std::nullopt);
  }
  if (!parameter.starts_with("experts.")) {
    return place_of({}, full_name("", parameter), shape, false);
  }
  const Index number = std::stoll(parameter.substr(8)), ranked = counts_.ranked;
  return number < ranked
             ? place_in(experts_, parameter, tensor, shape, OneOf{number, ranked})
             : place_in(always_, parameter, tensor, shape, OneOf{number - ranked, counts_.always});
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
  if (name.find("expert") != std::string_view::npos &&
      name.find("attn") == std::string_view::npos &&
      name.find("attention") == std::string_view::npos) {
    return true;
  }
  const auto begins_like = [&](std::string_view names) {
    for (const std::string_view each : words(names)) {
      const std::size_t point = each.find('.');
      if (name.starts_with(point == std::string_view::npos ? each : each.substr(0, point + 1))) {
        return true;
      }
    }
    return false;
  };
  return block.empty() &&
         (begins_like(family.router.weight) || begins_like(family.experts.prefix) ||
          begins_like(family.shared.prefixes) || begins_like(family.shared.output_gate) ||
          begins_like(family.router.selection_bias));
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
