// SPDX-License-Identifier: Apache-2.0
// What a call of DepthLayer produces, and what its backward needs of that. It is the caller's; the
// layer itself is const in use.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "../call_options.hpp"
#include "../concepts.hpp"
#include "../detail/identity.hpp"
#include "../growing_matrix.hpp"
#include "../row_groups.hpp"

namespace moe::inline MOE_INSTRUCTION_SET {

/// The tokens that the block gets: M, in their order.
template <Real W>
class TakenTokens {
 public:
  /// Lists those of a table with one choice for each token.
  void list(const RoutingTable<W>& table, const Tokens& tokens) {
    const Index num_tokens = table.num_tokens();
    token_.clear();
    weight_.clear();
    ids_.clear();
    position_.clear();
    slot_.assign(static_cast<std::size_t>(num_tokens), Index{none});
    offset_.assign(1, 0);
    for (Index b = 0; b < tokens.num_sequences(num_tokens); ++b) {
      const Sequence sequence = tokens.sequence(b, num_tokens);
      for (Index t = sequence.begin; t < sequence.end; ++t) {
        if (table.expert(t, 0) != none) {
          slot_[static_cast<std::size_t>(t)] = count();
          token_.push_back(t);
          position_.push_back(tokens.position_of(t));
          weight_.push_back(table.weight(t, 0));
          if (!tokens.ids.empty()) {
            ids_.push_back(tokens.ids[static_cast<std::size_t>(t)]);
          }
        }
      }
      offset_.push_back(count());
    }
    group_[1] = count();
  }

  Index count() const { return static_cast<Index>(token_.size()); }
  /// (M) which they are: row i of what the block gets is token()[i] of the batch.
  std::span<const Index> token() const { return token_; }
  std::span<const W> weight() const { return weight_; }
  /// One group of all of them. It refers to this object.
  RowGroups groups() const { return {group_, token_}; }
  /// What they are to the block: the same sequences, of fewer tokens, without padding.
  Tokens tokens() const { return {.ids = ids_, .sequence_offset = offset_, .position = position_}; }
  /// The row of a token: one of them, or none.
  std::span<const Index> rows_of(Index token) const {
    const Index& slot = slot_[static_cast<std::size_t>(token)];
    return {&slot, slot == none ? std::size_t{0} : std::size_t{1}};
  }

 private:
  std::vector<Index> token_, slot_, offset_, position_;
  std::vector<W> weight_;
  std::vector<std::int32_t> ids_;
  Index group_[2] = {0, 0};
};

/// What a call works in.
template <Real T, class RouterT, class PredictorT, class BlockMemory>
struct DepthMemory {
  typename RouterT::Table routing;       ///< expert 0: the token is taken; its weight is its logit
  typename PredictorT::Table predicted;  ///< logits of the predictor, where there is one and it was
                                         ///< asked; choices are those of routing
  TakenTokens<Wide<T>> taken;
  GrowingMatrix<T> gathered;  ///< (M, D) tokens that the block gets
  GrowingMatrix<T> rows;      ///< (M, D) what it makes of them
  /// Of a block that is a layer with a router, block.routing and block.plan are who went where in
  /// it: its token i is token taken.token()[i] of the batch.
  BlockMemory block;
};

/// Memory and results of an inference. Reused: it only grows. Not for two threads at once.
template <Real T, class RouterT, class PredictorT, ExpertLike<T> Block>
struct DepthScratch : DepthMemory<T, RouterT, PredictorT, typename Block::Scratch> {};

/// What backward needs of a forward, and its own memory.
template <Real T, class RouterT, class PredictorT, ExpertLike<T> Block>
struct DepthTape : DepthMemory<T, RouterT, PredictorT, typename Block::Tape> {
  RoutingGradient<Wide<T>> gradient;
  GrowingMatrix<T> drows, dx_rows;  ///< (M, D)
  GrowingMatrix<T> stopped;         ///< (N, D) the gradient of x by the predictor, which ends there
  int num_threads = 1;
  detail::Owner owner;  ///< the layer whose forward it is of
};

/// Gradients, or an optimiser's moments.
template <class RouterT, class PredictorT, class Block>
struct DepthGrads {
  GradsOf<RouterT> router;
  GradsOf<Block> block;
  GradsOf<PredictorT> predictor;  ///< empty without a predictor
};

}  // namespace moe::inline MOE_INSTRUCTION_SET
