// SPDX-License-Identifier: Apache-2.0
// Texts that a model goes on with side by side: their prompts as one batch, then a token of each.
#pragma once

#include <stdexcept>
#include <vector>

#include "model.hpp"

namespace decoder {

template <moe::Storage S>
class Session {
 public:
  /// Reads the prompts. Throws std::invalid_argument if one is empty. The model must outlive it.
  Session(const Model<S>& model, const std::vector<std::vector<TokenId>>& prompts)
      : model_(&model), sequences_(prompts.size(), model.sequence()) {
    std::vector<NewTokens> batch;
    std::vector<Index> last;  // row of each text
    Index end = 0;
    for (std::size_t i = 0; i < prompts.size(); ++i) {
      if (prompts[i].empty()) {
        throw std::invalid_argument("a prompt has no token, expected at least 1");
      }
      batch.push_back({&sequences_[i], prompts[i]});
      last.push_back((end += static_cast<Index>(prompts[i].size())) - 1);
    }
    const Rows states = model_->forward(batch, scratch_);
    logits_ = model_->logits(states(last, Eigen::all));
  }

  /// (texts, vocabulary) of the token that follows each text.
  const Rows& logits() const { return logits_; }

  /// One token of each text more.
  void append(const std::vector<TokenId>& tokens) {
    std::vector<NewTokens> batch;
    for (std::size_t i = 0; i < sequences_.size(); ++i) {
      batch.push_back({&sequences_[i], {&tokens.at(i), 1}});
    }
    logits_ = model_->logits(model_->forward(batch, scratch_));
  }

 private:
  const Model<S>* model_;
  std::vector<Sequence> sequences_;
  typename Model<S>::Scratch scratch_;
  Rows logits_;
};

}  // namespace decoder
