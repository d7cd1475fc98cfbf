// SPDX-License-Identifier: Apache-2.0
// The router's result: who goes where, with which weight. Everything after the router, and every
// loss, reads this and nothing else of the router.
#pragma once

#include <algorithm>
#include <cstdint>
#include <string_view>
#include <vector>

#include "detail/check.hpp"
#include "detail/parallel.hpp"
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
      {};                       ///< (N, E) standard deviation of the noise; empty without noise
  GrowingMatrix<T> state = {};  ///< (N, R) what the router hands on to the next layer's, if it does
  std::vector<std::uint8_t> padding = {};  ///< (N), not 0: the row is no token; empty: all are
  /// Whether the probs of a token sum to 1, as a softmax does. Losses on probabilities divide
  /// others by their sum.
  bool probs_sum_to_one = true;

  Index num_tokens() const { return expert.rows(); }
  Index top_k() const { return expert.cols(); }
  bool is_padding(Index token) const {
    return !padding.empty() && padding[static_cast<std::size_t>(token)] != 0;
  }
  /// Those that are used, of a token and of all.
  Index num_choices(Index token) const { return (expert.row(token).array() != none).count(); }
  Index num_choices() const {
    Index count = 0;
    for (Index token = 0; token < num_tokens(); ++token) {
      count += num_choices(token);
    }
    return count;
  }
};

/// The gradient of a scalar with respect to a routing table. An empty matrix stands for zeros.
template <Real T>
struct RoutingGradient {
  GrowingMatrix<T> weight = {};       ///< (N, K)
  GrowingMatrix<T> probs = {};        ///< (N, E)
  GrowingMatrix<T> logits = {};       ///< (N, E)
  GrowingMatrix<T> noise_scale = {};  ///< (N, E)
  GrowingMatrix<T> state = {};        ///< (N, R)

  /// visit(name, tensor...) for each tensor, of a gradient or of the table itself.
  template <class Visit, class... G>
  static void for_each(Visit&& visit, G&... g) {
    visit(std::string_view("weight"), g.weight...);
    visit(std::string_view("probs"), g.probs...);
    visit(std::string_view("logits"), g.logits...);
    visit(std::string_view("noise_scale"), g.noise_scale...);
    visit(std::string_view("state"), g.state...);
  }

  /// Throws std::invalid_argument if a tensor is neither empty nor of the table's shape.
  void validate(const RoutingTable<T>& table) const {
    for_each(
        [](std::string_view name, const GrowingMatrix<T>& tensor, const GrowingMatrix<T>& like) {
          detail::throw_unless(
              tensor.size() == 0 || (tensor.rows() == like.rows() && tensor.cols() == like.cols()),
              "RoutingGradient: ", name, " is (", tensor.rows(), ", ", tensor.cols(),
              "), expected (", like.rows(), ", ", like.cols(), ")");
        },
        *this, table);
  }

  /// All that one token has in it becomes 0.
  void clear(Index token) {
    for_each(
        [&](std::string_view, GrowingMatrix<T>& tensor) {
          if (tensor.size() > 0) {
            tensor.row(token).setZero();
          }
        },
        *this);
  }

  /// An empty tensor becomes zeros of the table's shape. Throws as validate().
  void fill_empty(const RoutingTable<T>& table, int num_threads = 1) {
    validate(table);
    for_each(
        [&](std::string_view, GrowingMatrix<T>& tensor, const GrowingMatrix<T>& like) {
          if (tensor.size() == 0) {
            write(nullptr, like, num_threads, tensor);
          }
        },
        *this, table);
  }

  /// Becomes `other`, filled by zeros: the same as a copy and fill_empty, without a new allocation.
  void assign(const RoutingGradient& other, const RoutingTable<T>& table, int num_threads = 1) {
    other.validate(table);
    for_each(
        [&](std::string_view, GrowingMatrix<T>& tensor, const GrowingMatrix<T>& from,
            const GrowingMatrix<T>& like) {
          write(from.size() == 0 ? nullptr : from.data(), like, num_threads, tensor);
        },
        *this, other, table);
  }

 private:
  /// tensor = from, zeros if null, in the shape of another.
  static void write(const T* from, const GrowingMatrix<T>& like, int num_threads,
                    GrowingMatrix<T>& tensor) {
    const Index cols = like.cols();
    tensor.resize(like.rows(), cols);
    detail::for_rows(like.rows(), num_threads, [&](Index row) {
      T* to = tensor.data() + row * cols;
      if (from == nullptr) {
        std::fill_n(to, cols, T(0));
      } else {
        std::copy_n(from + row * cols, cols, to);
      }
    });
  }
};

}  // namespace moe::inline MOE_INSTRUCTION_SET
