// SPDX-License-Identifier: Apache-2.0
// Whether experts prefer sources: how often each expert was chosen for tokens of each source, and
// the mutual information of the two in bits, beside that of the same choices with the sources of
// the tokens shuffled, which is what chance gives.
#pragma once

#include <moe/routing_table.hpp>

#include "parts.hpp"

namespace byte_lm {

class Specialisation {
 public:
  Specialisation(Index num_experts, Index num_sources)
      : num_experts_(num_experts), num_sources_(num_sources) {}

  /// Counts the choices of one more table; `source` is that of each of its tokens.
  template <class T>
  void add(const moe::RoutingTable<T>& table, const std::vector<Index>& source) {
    for (Index t = 0; t < table.num_tokens(); ++t) {
      for (Index k = 0; k < table.top_k(); ++k) {
        expert_.push_back(table.expert(t, k));
        source_.push_back(source[static_cast<std::size_t>(t)]);
      }
    }
  }

  /// (E, sources)
  Rows<double> counts() const { return counts_of(source_); }
  double bits() const { return information(counts()); }
  double shuffled_bits() const {
    std::vector<Index> source = source_;
    std::shuffle(source.begin(), source.end(), std::mt19937(1));
    return information(counts_of(source));
  }

 private:
  Rows<double> counts_of(const std::vector<Index>& source) const {
    Rows<double> counts = Rows<double>::Zero(num_experts_, num_sources_);
    for (std::size_t i = 0; i < source.size(); ++i) {
      counts(expert_[i], source[i]) += 1.0;
    }
    return counts;
  }
  static double information(const Rows<double>& counts) {
    const double all = counts.sum();
    double sum = 0.0;
    for (Index e = 0; e < counts.rows(); ++e) {
      for (Index s = 0; s < counts.cols(); ++s) {
        const double expected = counts.row(e).sum() * counts.col(s).sum() / all;
        if (counts(e, s) > 0.0) {
          sum += counts(e, s) / all * std::log2(counts(e, s) / expected);
        }
      }
    }
    return sum;
  }

  Index num_experts_, num_sources_;
  std::vector<Index> expert_, source_;  // of each choice
};

}  // namespace byte_lm
