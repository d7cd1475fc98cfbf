// SPDX-License-Identifier: Apache-2.0
// What all losses share. A loss is a pure function of a routing table, with its value and its
// gradient. It sees the router's choices before any are dropped over capacity; no gradient flows
// through counts.
//
// Each loss has two forms: one returns a new RoutingLoss; one writes into that of the caller (=),
// which keeps its memory from call to call. Threads share the tokens; what is summed over tokens is
// added up in their order, so that the bits do not depend on the threads.
//
// Neither the table's padding nor what a token mask leaves out counts in any sum or mean, or gets
// a gradient. Over no tokens at all a loss is 0, and of choices over a table with none.
#pragma once

#include <algorithm>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>
#include <type_traits>
#include <vector>

#include "../detail/check.hpp"
#include "../detail/parallel.hpp"
#include "../routing_table.hpp"

namespace moe::inline MOE_INSTRUCTION_SET {

/// (N), 0: the token is left out; empty: none but the padding of the table is.
using TokenMask = std::span<const std::uint8_t>;

namespace detail {

/// What is summed over tokens, of which there may be more than a float counts: in double where the
/// table is in fewer bits.
template <Real T>
using TokenSum = std::conditional_t<std::same_as<Wide<T>, float>, double, T>;

/// What a loss computes on the way. Copies of a loss go without it.
template <Real T>
struct LossMemory {
  std::vector<Index> count;      // (E) choices, or of each sequence
  std::vector<Index> sequence;   // (N) of each token
  std::vector<TokenSum<T>> sum;  // (E) of each expert
  std::vector<T> slope;          // (E) the derivative by it
  std::vector<T> term;           // (N) what each token adds to the value
  GrowingMatrix<ExpertId> best;  // (N, K + 1) the largest logits

  LossMemory() = default;
  LossMemory(const LossMemory&) : LossMemory() {}
  LossMemory(LossMemory&&) noexcept = default;
  LossMemory& operator=(const LossMemory&) { return *this; }
  LossMemory& operator=(LossMemory&&) noexcept = default;
  ~LossMemory() = default;
};

}  // namespace detail

/// A loss and its gradient with respect to the table. Losses are scaled and added like numbers:
/// auto aux = 0.01f * load_balancing_loss(table) + 0.001f * z_loss(table);
/// Written into, scaled by *= and added by +=, they allocate nothing once they have seen the
/// largest table.
template <Real T>
struct RoutingLoss {
  T value{0};
  RoutingGradient<T> gradient = {};
  detail::LossMemory<T> memory = {};  ///< of the calls that write into this loss

  /// Value and gradient become 0, a gradient of zeros being empty.
  void clear() {
    value = T(0);
    RoutingGradient<T>::for_each([](std::string_view, GrowingMatrix<T>& m) { m.resize(0, 0); },
                                 gradient);
  }

  RoutingLoss& operator*=(T factor) {
    value *= factor;
    RoutingGradient<T>::for_each([&](std::string_view, GrowingMatrix<T>& m) { m *= factor; },
                                 gradient);
    return *this;
  }
  /// Throws std::invalid_argument if the other is of a table with another shape.
  RoutingLoss& operator+=(const RoutingLoss& other) {
    RoutingGradient<T>::for_each(
        [](std::string_view, const GrowingMatrix<T>& to, const GrowingMatrix<T>& from) {
          if (to.size() > 0 && from.size() > 0) {
            detail::check_shape(from, to.rows(), to.cols(), "RoutingLoss: other gradient");
          }
        },
        gradient, other.gradient);
    value += other.value;
    RoutingGradient<T>::for_each(
        [](std::string_view, GrowingMatrix<T>& to, const GrowingMatrix<T>& from) {
          if (to.size() == 0) {
            to = from;
          } else if (from.size() > 0) {
            to += from;
          }
        },
        gradient, other.gradient);
    return *this;
  }
  friend RoutingLoss operator*(T factor, RoutingLoss loss) { return loss *= factor; }
  friend RoutingLoss operator+(RoutingLoss a, const RoutingLoss& b) { return a += b; }
};

namespace detail {

/// The tokens that count. Refers to table and mask.
template <Real T>
class CountedTokens {
 public:
  CountedTokens(const RoutingTable<T>& table, TokenMask mask)
      : mask_(mask), padding_(table.padding) {
    const auto fits = [&](TokenMask tokens) {
      return tokens.empty() || static_cast<Index>(tokens.size()) == table.num_tokens();
    };
    throw_unless(fits(mask_), "loss: token mask has ", mask_.size(), " elements, expected ",
                 table.num_tokens());
    throw_unless(fits(padding_), "loss: padding has ", padding_.size(), " elements, expected ",
                 table.num_tokens());
    for (Index t = 0; t < table.num_tokens(); ++t) {
      count_ += (*this)(t) ? 1 : 0;
    }
  }
  bool operator()(Index token) const {
    const auto t = static_cast<std::size_t>(token);
    return (mask_.empty() || mask_[t] != 0) && (padding_.empty() || padding_[t] == 0);
  }
  Index count() const { return count_; }

 private:
  TokenMask mask_;
  std::span<const std::uint8_t> padding_;
  Index count_ = 0;
};

/// Throws std::invalid_argument unless a matrix of the table has a row (cols) for each token.
template <Real T>
void check_written(const GrowingMatrix<T>& m, Index num_tokens, Index cols, const char* loss,
                   const char* what) {
  throw_unless(m.rows() == num_tokens && m.cols() == cols, loss, ": ", what, " of the table are (",
               m.rows(), ", ", m.cols(), "), expected a row of ", cols == 0 ? "E" : joined(cols),
               " for each of ", num_tokens, " tokens: its router has to write them");
}

/// Threads for a loss that takes about `multiply_adds` of them for each of the table's logits.
template <Real T>
int loss_threads(const RoutingTable<T>& table, Index num_experts, double multiply_adds,
                 int requested) {
  return num_threads(requested, multiply_adds * static_cast<double>(table.num_tokens()) *
                                    static_cast<double>(num_experts));
}

/// What a loss on logits begins with: it takes its tokens from a table with logits (N, E), and
/// leaves value and gradient of zero, and a term of zero for each token.
template <Real T>
struct LogitLoss {
  CountedTokens<T> counted;
  Index num_experts;
  int threads;
  T share;  ///< of a token in the mean
  std::vector<T>& term;

  /// Throws std::invalid_argument if mask or logits do not fit; `name` is that of the loss.
  LogitLoss(const RoutingTable<T>& table, TokenMask mask, RoutingLoss<T>& loss, int requested,
            const char* name)
      : counted(table, mask),
        num_experts(table.logits.cols()),
        threads(loss_threads(table, num_experts, 16.0, requested)),
        share(T(1.0 / static_cast<double>((std::max)(counted.count(), Index{1})))),
        term(loss.memory.term) {
    check_written(table.logits, table.num_tokens(), num_experts, name, "logits");
    term.assign(static_cast<std::size_t>(table.num_tokens()), T(0));
    loss.clear();
    loss.gradient.logits.setZero(table.num_tokens(), num_experts);
  }
};

/// The terms of the tokens that count, added in the order of the tokens.
template <Real T>
T sum_of_terms(const std::vector<T>& term, const CountedTokens<T>& counted) {
  TokenSum<T> sum(0);
  for (std::size_t t = 0; t < term.size(); ++t) {
    if (counted(static_cast<Index>(t))) {
      sum += static_cast<TokenSum<T>>(term[t]);
    }
  }
  return static_cast<T>(sum);
}

/// E, from the table's probs (N, E). Throws std::invalid_argument if they do not fit its experts.
template <Real T>
Index check_experts(const RoutingTable<T>& table) {
  const Index num_experts = table.probs.cols();
  check_written(table.probs, table.num_tokens(), num_experts, "loss", "probs");
  for (Index t = 0; t < table.num_tokens(); ++t) {
    for (Index k = 0; k < table.top_k(); ++k) {
      const ExpertId e = table.expert(t, k);
      throw_unless(e == none || (e >= 0 && e < num_experts), "loss: expert of token ", t, " is ", e,
                   ", expected in [0, num_experts = ", num_experts, ")");
    }
  }
  return num_experts;
}

}  // namespace detail

}  // namespace moe::inline MOE_INSTRUCTION_SET
