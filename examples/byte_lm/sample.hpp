// SPDX-License-Identifier: Apache-2.0
// Text that a model writes, a byte at a time.
#pragma once

#include <string>

#include "model.hpp"

namespace byte_lm {

/// `length` bytes that go on from a prompt, before which stand ends of lines. Each is drawn from
/// softmax(logits / temperature).
inline std::string sample(Model<float>& model, const std::string& prompt, Index length,
                          double temperature, std::uint64_t seed) {
  const auto context = static_cast<std::size_t>(model.context());
  std::string text = std::string(context, '\n') + prompt;
  std::mt19937_64 random(seed);
  Batch batch{.context = std::vector<std::uint8_t>(context), .target = {0}};
  std::vector<double> weight(256);
  for (Index i = 0; i < length; ++i) {
    std::copy(text.end() - model.context(), text.end(), batch.context.begin());
    const Rows<float>& logits = model.logits(batch);
    const float largest = logits.maxCoeff();
    for (std::size_t byte = 0; byte < weight.size(); ++byte) {
      const float logit = logits(0, static_cast<Index>(byte)) - largest;
      weight[byte] = std::exp(static_cast<double>(logit) / temperature);
    }
    std::discrete_distribution<int> draw(weight.begin(), weight.end());
    text += static_cast<char>(draw(random));
  }
  return text.substr(context);
}

}  // namespace byte_lm
