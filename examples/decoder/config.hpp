// SPDX-License-Identifier: Apache-2.0
// config.json -> what of a model is not its MoE blocks, whose keys moe::io reads by itself. The
// families are rows of data, as they are there.
#pragma once

#include <cmath>
#include <moe/io/checkpoint.hpp>
#include <string>
#include <string_view>

#include "rotary.hpp"

namespace decoder {

namespace io = moe::io;

/// What the attention of a family is. Of keys: which, and what they are where they are left out.
struct Family {
  std::string_view model_type;
  io::Setting theta, epsilon;  // of the rotary embedding, of every RMSNorm
  io::Setting qkv_bias = io::always(0), out_bias = io::always(0);
  enum class QkNorm { none, of_head, of_all } qk_norm = QkNorm::none;
  bool sinks = false;  // a logit of each head beside those of the keys, and no value
  io::Setting has_window = io::always(1), window = {"sliding_window", 0};
  std::string_view layer_type = {};  // where the key layer_types is left out; empty: it may not be
};

namespace keys {

inline constexpr std::string_view theta = "rope_theta rope_parameters.rope_theta";
inline constexpr std::string_view epsilon = "rms_norm_eps";
inline constexpr io::Setting bias{"attention_bias", 0}, has_window{"use_sliding_window", 0};

}  // namespace keys

inline constexpr std::string_view full = "full_attention", sliding = "sliding_attention";

inline constexpr Family families[] = {
    {.model_type = "mixtral",
     .theta = {keys::theta, 1e6},
     .epsilon = {keys::epsilon, 1e-5},
     .layer_type = sliding},
    // Which layers have the window, revisions of the family's code do not agree on.
    {.model_type = "qwen2_moe",
     .theta = {keys::theta, 1e4},
     .epsilon = {keys::epsilon, 1e-6},
     .qkv_bias = {"qkv_bias", 1},
     .has_window = keys::has_window},
    {.model_type = "qwen3_moe",
     .theta = {keys::theta, 1e4},
     .epsilon = {keys::epsilon, 1e-6},
     .qkv_bias = keys::bias,
     .out_bias = keys::bias,
     .qk_norm = Family::QkNorm::of_head,
     .has_window = keys::has_window,
     .layer_type = sliding},
    {.model_type = "olmoe",
     .theta = {keys::theta, 1e4},
     .epsilon = {keys::epsilon, 1e-5},
     .qkv_bias = keys::bias,
     .out_bias = keys::bias,
     .qk_norm = Family::QkNorm::of_all,
     .layer_type = full},
    {.model_type = "gpt_oss",
     .theta = {keys::theta, 150000},
     .epsilon = {keys::epsilon, 1e-5},
     .qkv_bias = {"attention_bias", 1},
     .out_bias = {"attention_bias", 1},
     .sinks = true,
     .window = {"sliding_window", 128}},
};

/// Of one layer.
struct AttentionConfig {
  Index d_model = 0, heads = 0, kv_heads = 0, head_dim = 0;
  bool qkv_bias = false, out_bias = false, sinks = false;
  Family::QkNorm qk_norm = Family::QkNorm::none;
  double epsilon = 0.0, clip = 0.0;  // clip: the most that a query, key or value is; 0: any
  Index window = 0;  // keys that a query sees, the last of them its own; 0: all up to that
};

/// Throws io::FormatError, naming the key, where config.json does not say what it must, or says
/// what is not supported.
class Config {
 public:
  explicit Config(const io::ModelConfig& config) : config_(&config), family_(&family_of(config)) {
    partial_rotary();
  }

  Index vocabulary() const { return at_least_1("vocab_size"); }
  Index d_model() const { return at_least_1("hidden_size"); }
  Index num_layers() const { return at_least_1("num_hidden_layers"); }
  Index dense_width() const { return at_least_1("intermediate_size"); }
  double epsilon() const { return family_->epsilon.of(*config_, 0); }
  /// Whether the embedding is the output's matrix, too.
  bool tied() const { return io::Setting{"tie_word_embeddings", 0}.is_set(*config_, 0); }

  AttentionConfig attention(Index layer) const;
  RotaryConfig rotary() const;

 private:
  static const Family& family_of(const io::ModelConfig& config);
  /// So that the product of two is one, too.
  Index at_least_1(std::string_view key) const {
    const Index size = config_->size(key), most = Index{1} << 30;
    if (size < 1 || size > most) {
      config_->fail(key, std::to_string(size), "at least 1 and at most " + std::to_string(most));
    }
    return size;
  }
  Index kv_heads() const;
  Index head_dim() const;
  Index window(Index layer) const;
  Yarn yarn(double positions) const;
  void partial_rotary() const;

  const io::ModelConfig* config_;
  const Family* family_;
};

inline const Family& Config::family_of(const io::ModelConfig& config) {
  const std::string type = config.text("model_type", "");
  std::string known;
  for (const Family& family : families) {
    if (family.model_type == type) {
      return family;
    }
    known += (known.empty() ? "" : ", ") + std::string(family.model_type);
  }
  config.fail("model_type", "\"" + io::printable(type, 40) + "\"", "one of " + known);
}

inline void Config::partial_rotary() const {
  const std::string_view key = "partial_rotary_factor rope_parameters.partial_rotary_factor";
  if (const double part = config_->number(key, 1.0); part < 1.0 || part > 1.0) {
    config_->fail(key, std::to_string(part), "1, all that is supported");
  }
}

inline Index Config::kv_heads() const {
  const Index heads = at_least_1("num_attention_heads");
  const Index count = config_->size("num_key_value_heads", heads);
  if (count < 1 || heads % count != 0) {
    config_->fail("num_key_value_heads", std::to_string(count),
                  "a divisor of num_attention_heads = " + std::to_string(heads));
  }
  return count;
}

inline Index Config::head_dim() const {
  const Index given = d_model() / at_least_1("num_attention_heads");
  const Index width = config_->size("head_dim", given);
  if (width < 2 || width > 65536 || width % 2 != 0) {
    config_->fail("head_dim", std::to_string(width), "an even number in [2, 65536]");
  }
  return width;
}

inline Index Config::window(Index layer) const {
  if (!family_->has_window.is_set(*config_, layer)) {
    return 0;
  }
  const std::string type = config_->text("layer_types", family_->layer_type, layer);
  if (type != full && type != sliding) {
    config_->fail("layer_types", type.empty() ? "no such key" : "\"" + io::printable(type) + "\"",
                  "\"sliding_attention\" or \"full_attention\" for layer " + std::to_string(layer));
  }
  return type == full ? 0 : family_->window.size_of(*config_, layer);
}

inline AttentionConfig Config::attention(Index layer) const {
  return {.d_model = d_model(),
          .heads = at_least_1("num_attention_heads"),
          .kv_heads = kv_heads(),
          .head_dim = head_dim(),
          .qkv_bias = family_->qkv_bias.is_set(*config_, layer),
          .out_bias = family_->out_bias.is_set(*config_, layer),
          .sinks = family_->sinks,
          .qk_norm = family_->qk_norm,
          .epsilon = epsilon(),
          .clip = config_->number("clip_qkv", 0.0),
          .window = window(layer)};
}

namespace keys {

/// The two places in which revisions keep what there is to say of the rotary embedding.
inline std::string rope(const std::string& name) {
  return "rope_scaling." + name + " rope_parameters." + name;
}

}  // namespace keys

inline RotaryConfig Config::rotary() const {
  RotaryConfig made{.head_dim = head_dim(), .theta = family_->theta.of(*config_, 0)};
  if (!(made.theta > 1.0)) {
    config_->fail(keys::theta, std::to_string(made.theta), "more than 1");
  }
  const std::string key = keys::rope("rope_type") + " rope_scaling.type";
  const std::string type = config_->text(key, "default");
  if (type == "yarn") {
    made.yarn = yarn(config_->number("max_position_embeddings"));
  } else if (type != "default") {
    config_->fail(key, "\"" + io::printable(type, 40) + "\"", "\"default\" or \"yarn\"");
  }
  return made;
}

inline Yarn Config::yarn(double positions) const {
  const auto number = [&](const char* name, double omitted) {
    return config_->number(keys::rope(name), omitted);
  };
  Yarn made{.context = number("original_max_position_embeddings", positions),
            .fast = number("beta_fast", 32),
            .slow = number("beta_slow", 1),
            .whole = number("truncate", 1) > 0};
  made.factor = number("factor", positions / made.context);
  const auto grown = [&](double by) {
    return made.factor > 1.0 ? 0.1 * by * std::log(made.factor) + 1.0 : 1.0;
  };
  const double one = number("mscale", 0), all = number("mscale_all_dim", 0);
  made.scale = number("attention_factor", one > 0 && all > 0 ? grown(one) / grown(all) : grown(1));
  if (!(made.context > 0.0 && made.factor > 0.0 && made.fast > 0.0 && made.slow > 0.0)) {
    config_->fail("rope_scaling", "a number of 0 or less", "numbers greater than 0");
  }
  return made;
}

}  // namespace decoder
