// SPDX-License-Identifier: Apache-2.0
// How evenly a router gives out tokens, counted over as many calls as a step or an evaluation has:
// what a trainer watches, and what the update of a selection bias goes by.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <numeric>
#include <span>
#include <vector>

#include "../routing_table.hpp"

namespace moe::inline MOE_INSTRUCTION_SET {

/// Choices of each expert, whether kept or dropped over capacity; padding makes none.
class ExpertLoad {
 public:
  /// Throws std::invalid_argument for less than one expert.
  explicit ExpertLoad(Index num_experts) {
    detail::throw_unless(num_experts >= 1, "ExpertLoad: num_experts = ", num_experts,
                         ", expected at least 1");
    choices_.assign(static_cast<std::size_t>(num_experts), 0);
  }

  /// Counts one more table, but for its padding and for what a mask (N) leaves out with 0. Tokens
  /// of an evaluation are not to be added. Throws std::invalid_argument, and counts nothing, if it
  /// has an expert that there is not, or the mask is of another size.
  template <Real T>
  void add(const RoutingTable<T>& table, std::span<const std::uint8_t> mask = {}) {
    const Index size = static_cast<Index>(choices_.size());
    const Index num_tokens = table.num_tokens(), top_k = table.expert.cols();
    detail::throw_unless(mask.empty() || std::ssize(mask) == num_tokens,
                         "ExpertLoad: the mask has ", mask.size(), " elements, expected ",
                         num_tokens);
    const auto counts = [&](Index t) {
      return !table.is_padding(t) && (mask.empty() || mask[static_cast<std::size_t>(t)] != 0);
    };
    const auto for_each_choice = [&](auto&& visit) {
      for (Index t = 0; t < num_tokens; ++t) {
        for (Index k = 0; k < top_k && counts(t); ++k) {
          if (const ExpertId e = table.expert(t, k); e != none) {
            visit(e);
          }
        }
      }
    };
    for_each_choice([&](ExpertId e) {
      detail::throw_unless(e >= 0 && e < size, "ExpertLoad: expert ", e, ", expected in [0, ", size,
                           ")");
    });
    for_each_choice([&](ExpertId e) { ++choices_[static_cast<std::size_t>(e)]; });
  }
  /// Adds what was counted elsewhere, as on other ranks. Throws std::invalid_argument, and adds
  /// nothing, unless it is one number an expert, none negative, of a total that can be counted.
  void add(std::span<const Index> choices) {
    detail::throw_unless(choices.size() == choices_.size(), "ExpertLoad: there are ",
                         choices.size(), " numbers to add, expected one for each of ",
                         choices_.size(), " experts");
    Index sum = total();
    for (const Index count : choices) {
      detail::check_count(count, "ExpertLoad: choices");
      detail::throw_unless(count <= detail::most_counted - sum, "ExpertLoad: ", count,
                           " choices beside ", sum, ", expected at most ", detail::most_counted,
                           " together");
      sum += count;
    }
    for (std::size_t e = 0; e < choices_.size(); ++e) {
      choices_[e] += choices[e];
    }
  }
  void clear() { std::fill(choices_.begin(), choices_.end(), Index{0}); }

  const std::vector<Index>& choices() const { return choices_; }
  Index total() const { return std::accumulate(choices_.begin(), choices_.end(), Index{0}); }
  double mean() const {
    return static_cast<double>(total()) / static_cast<double>(choices_.size());
  }
  /// Of the busiest expert, over the mean: 1 where all have as much; 0 without choices.
  double largest_over_mean() const {
    const auto most = static_cast<double>(*std::max_element(choices_.begin(), choices_.end()));
    return most > 0.0 ? most / mean() : 0.0;
  }
  /// Experts that nobody chose.
  Index num_idle() const { return std::count(choices_.begin(), choices_.end(), Index{0}); }
  /// Of a choice's expert, in nats: log(E) where all have as much; 0 without choices.
  double entropy() const {
    const auto all = static_cast<double>(total());
    double sum = 0.0;
    for (const Index count : choices_) {
      if (count > 0) {
        const double share = static_cast<double>(count) / all;
        sum -= share * std::log(share);
      }
    }
    return sum;
  }

 private:
  std::vector<Index> choices_;
};

}  // namespace moe::inline MOE_INSTRUCTION_SET
