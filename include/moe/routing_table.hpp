// SPDX-License-Identifier: Apache-2.0
// The router's result: who goes where, with which weight. Everything after the router, and every
// loss, reads this and nothing else of the router.
#pragma once

#include <cstdint>
#include <vector>

#include "detail/check.hpp"
#include "types.hpp"

namespace moe::inline MOE_INSTRUCTION_SET {

template <Real T>
struct RoutingTable {
  Matrix<ExpertId> expert = {};  ///< (N, K), best first; `none` where a choice is not used
  Matrix<T> weight = {};         ///< (N, K), 0 where a choice is not used
  Matrix<T> probs = {};          ///< (N, E), the score of every expert, 0 where masked
  Matrix<T> logits = {};         ///< (N, E), as ranked: with the noise; -inf where masked
  Matrix<T> clean_logits = {};   ///< (N, E) before the noise; empty without noise
  Matrix<T> noise_scale = {};    ///< (N, E) standard deviation of the noise; empty without noise
  std::vector<std::uint8_t> padding = {};  ///< (N), not 0: the row is no token; empty: all are

  Index num_tokens() const { return expert.rows(); }
  Index top_k() const { return expert.cols(); }
};

/// The gradient of a scalar with respect to a routing table. An empty matrix stands for zeros.
template <Real T>
struct RoutingGradient {
  Matrix<T> weight = {};       ///< (N, K)
  Matrix<T> probs = {};        ///< (N, E)
  Matrix<T> logits = {};       ///< (N, E)
  Matrix<T> noise_scale = {};  ///< (N, E)

  /// Becomes `other`, with zeros of the table's shape where a tensor is empty. other may be *this.
  /// Throws std::invalid_argument if a tensor has another shape than the table's.
  void assign(const RoutingGradient& other, const RoutingTable<T>& table) {
    const auto copy = [](const Matrix<T>& from, const Matrix<T>& like, const char* what,
                         Matrix<T>& to) {
      if (from.size() == 0) {
        to.setZero(like.rows(), like.cols());
      } else {
        detail::check_shape(from, like.rows(), like.cols(), what);
        to = from;
      }
    };
    copy(other.weight, table.weight, "RoutingGradient: weight", weight);
    copy(other.probs, table.probs, "RoutingGradient: probs", probs);
    copy(other.logits, table.logits, "RoutingGradient: logits", logits);
    copy(other.noise_scale, table.noise_scale, "RoutingGradient: noise_scale", noise_scale);
  }
};

}  // namespace moe::inline MOE_INSTRUCTION_SET
