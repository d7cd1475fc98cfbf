// SPDX-License-Identifier: Apache-2.0
// The router's result: who goes where, with which weight. Everything after the router, and every
// loss, reads this and nothing else of the router.
#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

#include "detail/check.hpp"
#include "growing_matrix.hpp"

namespace moe::inline MOE_INSTRUCTION_SET {

template <Real T>
struct RoutingTable {
  GrowingMatrix<ExpertId> expert = {};  ///< (N, K), best first; `none` where a choice is not used
  GrowingMatrix<T> weight = {};         ///< (N, K), 0 where a choice is not used
  GrowingMatrix<T> probs = {};          ///< (N, E), the score of every expert, 0 where masked
  GrowingMatrix<T> logits = {};         ///< (N, E), as ranked: with the noise; -inf where masked
  GrowingMatrix<T> clean_logits = {};   ///< (N, E) before the noise; empty without noise
  GrowingMatrix<T> noise_scale =
      {};  ///< (N, E) standard deviation of the noise; empty without noise
  std::vector<std::uint8_t> padding = {};  ///< (N), not 0: the row is no token; empty: all are
  /// Whether the probs of a token sum to 1, as a softmax does. Losses on probabilities divide
  /// others by their sum.
  bool probs_sum_to_one = true;

  Index num_tokens() const { return expert.rows(); }
  Index top_k() const { return expert.cols(); }
  bool is_padding(Index token) const {
    return !padding.empty() && padding[static_cast<std::size_t>(token)] != 0;
  }
};

/// The gradient of a scalar with respect to a routing table. An empty matrix stands for zeros.
template <Real T>
struct RoutingGradient {
  GrowingMatrix<T> weight = {};       ///< (N, K)
  GrowingMatrix<T> probs = {};        ///< (N, E)
  GrowingMatrix<T> logits = {};       ///< (N, E)
  GrowingMatrix<T> noise_scale = {};  ///< (N, E)

  /// visit(name, tensor...) for each tensor, of a gradient or of the table itself.
  template <class Visit, class... G>
  static void for_each(Visit&& visit, G&... g) {
    visit(std::string_view("weight"), g.weight...);
    visit(std::string_view("probs"), g.probs...);
    visit(std::string_view("logits"), g.logits...);
    visit(std::string_view("noise_scale"), g.noise_scale...);
  }

  /// An empty tensor becomes zeros of the table's shape. Throws std::invalid_argument if another
  /// one has another shape than the table's.
  void fill_empty(const RoutingTable<T>& table) {
    for_each(
        [](std::string_view name, GrowingMatrix<T>& tensor, const GrowingMatrix<T>& like) {
          if (tensor.size() == 0) {
            tensor.setZero(like.rows(), like.cols());
          }
          check_like(name, tensor, like);
        },
        *this, table);
  }

  /// Becomes `other`, filled by zeros: the same as a copy and fill_empty, without a new allocation.
  void assign(const RoutingGradient& other, const RoutingTable<T>& table) {
    for_each(
        [](std::string_view name, GrowingMatrix<T>& tensor, const GrowingMatrix<T>& from,
           const GrowingMatrix<T>& like) {
          if (from.size() == 0) {
            tensor.setZero(like.rows(), like.cols());
          } else {
            check_like(name, from, like);
            tensor = from;
          }
        },
        *this, other, table);
  }

 private:
  static void check_like(std::string_view name, const GrowingMatrix<T>& tensor,
                         const GrowingMatrix<T>& like) {
    detail::check(tensor.rows() == like.rows() && tensor.cols() == like.cols(),
                  "RoutingGradient: ", name, " is (", tensor.rows(), ", ", tensor.cols(),
                  "), expected (", like.rows(), ", ", like.cols(), ")");
  }
};

}  // namespace moe::inline MOE_INSTRUCTION_SET
