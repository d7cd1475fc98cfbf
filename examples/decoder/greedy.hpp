// SPDX-License-Identifier: Apache-2.0
// Greedy sampling: of a row of logits the likeliest token.
#pragma once

#include <cmath>
#include <stdexcept>
#include <string>
#include <vector>

#include "model.hpp"

namespace decoder {

/// For each row; of equal logits the lowest id. Throws std::runtime_error where one is not a
/// number.
inline std::vector<TokenId> likeliest(const Rows& logits) {
  std::vector<TokenId> tokens;
  for (Index row = 0; row < logits.rows(); ++row) {
    Index best = 0;
    for (Index id = 0; id < logits.cols(); ++id) {
      if (std::isnan(logits(row, id))) {
        throw std::runtime_error("the logit of token " + std::to_string(id) +
                                 " is NaN: is there one in the weights?");
      }
      best = logits(row, id) > logits(row, best) ? id : best;
    }
    tokens.push_back(static_cast<TokenId>(best));
  }
  return tokens;
}

}  // namespace decoder
