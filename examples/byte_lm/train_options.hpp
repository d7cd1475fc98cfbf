// SPDX-License-Identifier: Apache-2.0
// What a run is trained by, beside its model, its text and its seed.
#pragma once

#include <algorithm>
#include <map>
#include <moe/train.hpp>
#include <nlohmann/json.hpp>
#include <string>

#include "model.hpp"

namespace byte_lm {

using Json = nlohmann::ordered_json;

/// How the load of the experts is kept even: by the auxiliary loss, by a selection bias that
/// follows the load (Wang et al. 2024), or not at all.
enum class Balance { aux, bias, none };
inline const std::map<std::string, Balance> balances{
    {"aux", Balance::aux}, {"bias", Balance::bias}, {"none", Balance::none}};

/// The name of a value in a map of options.
template <class T>
std::string name_of(const std::map<std::string, T>& names, T value) {
  return std::find_if(names.begin(), names.end(),
                      [&](const auto& pair) { return pair.second == value; })
      ->first;
}

struct TrainOptions {
  Index tokens = 10'000'000, batch = 2048;
  double long_factor = 1.0;  ///< over `tokens` and `evaluations`
  double rate = 0.016;
  moe::AdamWConfig adamw = {.beta1 = 0.9, .beta2 = 0.99, .decay = 0.1};
  double clip = 1.0, floor = 0.05;
  Index warm_up = 100;
  Balance balance = Balance::aux;
  RouterLosses losses = {.balance = 0.03, .z = 0.001};
  moe::BiasUpdate bias = {.rate = 0.006};
  Index evaluations = 20, validation_tokens = 32768, test_tokens = 131072;
  Index save_every = 250;  ///< steps
  int threads = 1;

  Index num_steps() const { return (std::max)(Index{1}, times_factor(tokens) / batch); }
  Index num_evaluations() const { return times_factor(evaluations); }

 private:
  Index times_factor(Index count) const {
    return static_cast<Index>(long_factor * static_cast<double>(count));
  }
};

/// All that the bits of a run come from, beside text and seed; neither threads nor saves.
inline Json settings_of(const ModelConfig& model, const TrainOptions& train) {
  const FeedForwardConfig& ffn = model.feed_forward;
  return {{"context", model.context},
          {"embedding", model.embedding},
          {"blocks", model.blocks},
          {"d_model", ffn.d_model},
          {"d_ff", ffn.d_ff},
          {"experts", ffn.num_experts},
          {"top_k", ffn.top_k},
          {"tokens", train.tokens},
          {"long_factor", train.long_factor},
          {"batch", train.batch},
          {"rate", train.rate},
          {"warm_up", train.warm_up},
          {"beta2", train.adamw.beta2},
          {"decay", train.adamw.decay},
          {"clip", train.clip},
          {"floor", train.floor},
          {"balance", name_of(balances, train.balance)},
          {"balance_weight", train.losses.balance},
          {"z_weight", train.losses.z},
          {"bias_rate", train.bias.rate},
          {"evaluations", train.evaluations},
          {"validation_tokens", train.validation_tokens},
          {"test_tokens", train.test_tokens}};
}

/// Of the command line, those that a setting of settings_of follows from; its own name if none has
/// it.
inline std::string options_of(const std::string& setting, bool dense) {
  for (const char* const constant : {"beta2", "decay", "clip", "floor"}) {
    if (setting == constant) {
      return setting;
    }
  }
  std::string option = "--" + setting;
  std::replace(option.begin(), option.end(), '_', '-');
  return dense && setting == "d_ff" ? "--dense-d-ff, --d-ff, --experts or --top-k" : option;
}

}  // namespace byte_lm
