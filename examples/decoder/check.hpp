// SPDX-License-Identifier: Apache-2.0
// A model against what another program has recorded of it: logits and states of whole texts, the
// experts of their tokens, and a greedy continuation. The texts are read twice, as one batch and
// token by token with the caches.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <moe/io/safetensors.hpp>
#include <string>
#include <vector>

#include "greedy.hpp"
#include "session.hpp"

namespace decoder {

struct Report {
  struct Difference {
    std::string tensor;
    double largest;
  };
  struct Token {
    std::string place;
    Index expected, found;
  };

  double tolerance = 0.0;
  std::vector<Difference> differences;
  std::vector<Token> tokens;  // that differ
  Index different_experts = 0;

  bool passed() const {
    // NaN is no small difference.
    return tokens.empty() && different_experts == 0 &&
           std::all_of(differences.begin(), differences.end(),
                       [&](const Difference& each) { return each.largest <= tolerance; });
  }
};

class Check {
 public:
  /// Throws io::FormatError unless the file has all that is compared.
  Check(const Model<float>& model, const io::SafeTensors& expected)
      : model_(model), expected_(expected) {}

  Report run(double tolerance) {
    report_.tolerance = tolerance;
    const Ids texts = ids("input_ids");
    const Rows logits = check_batch(texts);
    check_steps(texts, logits);
    check_greedy();
    return report_;
  }

 private:
  using Ids = std::vector<std::vector<TokenId>>;

  Ids ids(const std::string& name) const;
  Rows check_batch(const Ids& texts);
  void check_steps(const Ids& texts, const Rows& logits);
  void check_greedy();
  void check_experts(const Trace& trace);
  void compare(const std::string& name, const Rows& found);

  const Model<float>& model_;
  const io::SafeTensors& expected_;
  Report report_;
};

/// The largest |a - b|; infinity where either is NaN.
template <class A, class B>
double largest_difference(const A& a, const B& b) {
  double largest = 0.0;
  for (Index row = 0; row < a.rows(); ++row) {
    for (Index col = 0; col < a.cols(); ++col) {
      const double difference =
          std::abs(static_cast<double>(a(row, col)) - static_cast<double>(b(row, col)));
      largest = std::isnan(difference) ? std::numeric_limits<double>::infinity()
                                       : (std::max)(largest, difference);
    }
  }
  return largest;
}

/// Of one text [S], or several [B, S].
inline Check::Ids Check::ids(const std::string& name) const {
  const auto& shape = expected_.at(name).shape;
  const Index cols = shape.empty() ? 1 : shape.back();
  const Index rows = shape.size() < 2 ? 1 : shape.front();
  if (rows < 1 || cols < 1) {
    throw io::FormatError(expected_.file(), name, std::nullopt, "no token, expected at least 1");
  }
  const auto all = io::read_matrix<TokenId>(expected_, name, rows, cols);
  Ids texts;
  for (Index row = 0; row < rows; ++row) {
    texts.emplace_back(all.row(row).begin(), all.row(row).end());
  }
  return texts;
}

inline void Check::compare(const std::string& name, const Rows& found) {
  const auto recorded = io::read_matrix<double>(expected_, name, found.rows(), found.cols());
  report_.differences.push_back({name, largest_difference(found, recorded)});
}

inline Rows Check::check_batch(const Ids& texts) {
  std::vector<Sequence> sequences(texts.size(), model_.sequence());
  std::vector<NewTokens> batch;
  for (std::size_t i = 0; i < texts.size(); ++i) {
    batch.push_back({&sequences[i], texts[i]});
  }
  Model<float>::Scratch scratch;
  Trace trace;
  const Rows logits = model_.logits(model_.forward(batch, scratch, &trace));
  compare("hidden.embed", trace.embedding);
  for (std::size_t layer = 0; layer < trace.layers.size(); ++layer) {
    compare("hidden.layer." + std::to_string(layer), trace.layers[layer]);
  }
  compare("hidden.norm", trace.norm);
  compare("logits", logits);
  compare("logits64", logits);
  check_experts(trace);
  return logits;
}

inline void Check::check_experts(const Trace& trace) {
  for (std::size_t layer = 0; layer < trace.experts.size(); ++layer) {
    const auto& found = trace.experts[layer];
    if (found.size() > 0) {
      const auto recorded = io::read_matrix<moe::ExpertId>(
          expected_, "router." + std::to_string(layer) + ".indices", found.rows(), found.cols());
      report_.different_experts += (found.array() != recorded.array()).count();
    }
  }
}

/// logits: those of the batch.
inline void Check::check_steps(const Ids& texts, const Rows& logits) {
  const auto num_texts = static_cast<Index>(texts.size());
  const auto length = static_cast<Index>(texts.front().size());
  const auto column = [&](Index position) {
    std::vector<TokenId> tokens;
    for (const auto& text : texts) {
      tokens.push_back(text[static_cast<std::size_t>(position)]);
    }
    return tokens;
  };
  Ids first;
  for (const TokenId id : column(0)) {
    first.push_back({id});
  }
  Rows all(logits.rows(), logits.cols());
  Session<float> session(model_, first);
  for (Index position = 0; position < length; ++position) {
    if (position > 0) {
      session.append(column(position));
    }
    for (Index text = 0; text < num_texts; ++text) {
      all.row(text * length + position) = session.logits().row(text);
    }
  }
  report_.differences.push_back({"one by one and batch", largest_difference(all, logits)});
}

inline void Check::check_greedy() {
  const std::vector<TokenId> expected = ids("greedy_ids").front();
  Session<float> session(model_, ids("prompt_ids"));
  Rows logits(static_cast<Index>(expected.size()), model_.vocabulary());
  for (std::size_t i = 0; i < expected.size(); ++i) {
    logits.row(static_cast<Index>(i)) = session.logits().row(0);
    const std::vector<TokenId> found = likeliest(session.logits());
    if (found.front() != expected[i]) {
      report_.tokens.push_back({"greedy_ids " + std::to_string(i), expected[i], found.front()});
    }
    if (i + 1 < expected.size()) {
      session.append(found);
    }
  }
  compare("greedy_logits64", logits);
}

}  // namespace decoder
