// SPDX-License-Identifier: Apache-2.0
// The keys and names of a GGUF model -> ModelConfig, as rows of gguf_rows.hpp ask it: keys without
// their architecture, and what such files say by their tensors or leave to be known.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "model_config.hpp"
#include "tensor_files.hpp"

namespace moe::inline MOE_INSTRUCTION_SET::io {

namespace detail {

inline JsonFact whole_fact(std::int64_t value) {
  return {.kind = JsonFact::Kind::integer, .integer = value, .number = static_cast<double>(value)};
}

/// A whole number among the facts, or `omitted` where there is none.
inline std::int64_t whole_of(const JsonFacts& facts, std::string_view key, std::int64_t omitted) {
  const auto found = facts.find(key);
  const bool is_whole = found != facts.end() && found->second.kind == JsonFact::Kind::integer;
  return is_whole ? found->second.integer : omitted;
}

/// The keys that begin with "<architecture>.", without that.
inline JsonFacts of_architecture(const JsonFacts& all, const std::string& architecture) {
  JsonFacts own;
  const std::string begin = architecture + '.';
  for (auto fact = all.lower_bound(begin); fact != all.end() && fact->first.starts_with(begin);
       ++fact) {
    own.emplace(fact->first.substr(begin.size()), fact->second);
  }
  return own;
}

/// Where that overflows, the greatest number. A width below 0 stays as it is, to be refused.
inline std::int64_t times(std::int64_t count, std::int64_t width) {
  constexpr std::int64_t most = (std::numeric_limits<std::int64_t>::max)();
  return width <= 0 ? width : count > 0 && width > most / count ? most : width * count;
}

/// Outputs of the first shared expert's up projection; 0 where no layer has one.
inline std::int64_t width_in_tensors(TensorFiles& files) {
  const std::vector<std::string>& names = files.names();
  const auto found = std::find_if(names.begin(), names.end(), [](const std::string& name) {
    return name.starts_with("blk.") && name.ends_with(".ffn_up_shexp.weight");
  });
  return found == names.end() ? 0 : files.at(*found).view.shape.front();
}

/// expert_shared_width: of all shared experts together, as a number, or as a list of a layer each.
/// A key for it is of one of them in some architectures: the tensor, which has `width`, says.
inline JsonFact shared_width(const JsonFacts& facts, std::int64_t width) {
  const std::int64_t count = (std::max)(whole_of(facts, "expert_shared_count", 0), std::int64_t{0});
  const std::int64_t said = whole_of(facts, "expert_shared_feed_forward_length", 0);
  if (said != 0) {
    return whole_fact(width == times(count, said) && width > 0 ? width : said);
  }
  const auto each = facts.find("expert_feed_forward_length");
  if (each == facts.end() || count == 0) {
    return whole_fact(0);
  }
  JsonFact made = each->second;
  const auto multiply = [&](JsonFact& fact) {
    if (fact.kind == JsonFact::Kind::integer) {
      fact = whole_fact(times(count, fact.integer));
    }
  };
  multiply(made);
  std::for_each(made.items.begin(), made.items.end(), multiply);
  return made;
}

/// Files of before the key expert_gating_func have a softmax but for GLM-4.7-Flash.
inline bool is_glm_flash(const JsonFacts& facts) {
  const std::int64_t blocks = whole_of(facts, "block_count", 0);
  return (blocks == 47 || blocks == 48) && whole_of(facts, "vocab_size", 0) == 154880;
}

}  // namespace detail

/// model_type is the architecture. Of the tensors' names: "exp_probs_b", "ffn_gate_inp.bias" and
/// "ffn_down_exps.bias", 1 where a layer has such a tensor. Throws FormatError where the files have
/// no architecture.
inline ModelConfig gguf_config(TensorFiles& files) {
  const JsonFacts& all = files.facts();
  const auto architecture = all.find("general.architecture");
  if (architecture == all.end() || architecture->second.kind != JsonFact::Kind::text) {
    throw FormatError(
        files.file(), "", std::nullopt,
        detail::joined("key \"general.architecture\": ",
                       architecture == all.end() ? "no such key" : architecture->second.shown(),
                       ", expected text"));
  }
  JsonFacts facts = detail::of_architecture(all, architecture->second.text);
  facts["model_type"] = architecture->second;
  const std::int64_t blocks = detail::whole_of(facts, "block_count", -1),
                     predicting = detail::whole_of(facts, "nextn_predict_layers", 0);
  if (blocks >= 0 && predicting >= 0 && predicting <= blocks) {
    facts["num_layers"] = detail::whole_fact(blocks - predicting);
  }
  const auto tokens = all.find("tokenizer.ggml.tokens");
  if (!facts.contains("vocab_size") && tokens != all.end() &&
      tokens->second.kind == JsonFact::Kind::list) {
    facts["vocab_size"] = detail::whole_fact(tokens->second.integer);
  }
  // 0 stands for none in both.
  if (const auto scale = facts.find("expert_weights_scale");
      scale != facts.end() && moe::detail::equals(scale->second.number, 0.0)) {
    facts.erase(scale);
  }
  if (detail::whole_of(facts, "expert_gating_func", 0) == 0) {
    facts.erase("expert_gating_func");
    if (architecture->second.text == "deepseek2" && detail::is_glm_flash(facts)) {
      facts["expert_gating_func"] = detail::whole_fact(2);
    }
  }
  facts["expert_shared_width"] = detail::shared_width(facts, detail::width_in_tensors(files));
  if (!facts.contains("swiglu_clamp_shexp") && facts.contains("swiglu_clamp_exp")) {
    facts["swiglu_clamp_shexp"] = facts["swiglu_clamp_exp"];
  }
  for (const char* tensor : {"exp_probs_b", "ffn_gate_inp.bias", "ffn_down_exps.bias"}) {
    const std::string part = detail::joined(".", tensor);
    const bool has =
        std::any_of(files.names().begin(), files.names().end(), [&](const std::string& name) {
          return name.starts_with("blk.") && name.find(part) != std::string::npos;
        });
    facts[tensor] = detail::whole_fact(has ? 1 : 0);
  }
  return ModelConfig::of(std::move(facts), files.file());
}

}  // namespace moe::inline MOE_INSTRUCTION_SET::io
