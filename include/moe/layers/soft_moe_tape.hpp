// SPDX-License-Identifier: Apache-2.0
// What a SoftMoELayer is made of, what a call of it produces, and what its backward needs of that.
// It is the caller's; the layer itself is const in use.
#pragma once

#include <optional>
#include <vector>

#include "../detail/identity.hpp"
#include "../routing/slot_router.hpp"
#include "layer_parts.hpp"
#include "slot_rows.hpp"

namespace moe::inline MOE_INSTRUCTION_SET {

struct SoftMoEConfig {
  Index d_model = 0;
  Index d_ff = 0;
  Index num_experts = 0;
  Index slots = 1;  ///< of an expert, in each sequence
  /// Output width; d_model if not set.
  std::optional<Index> d_out = std::nullopt;
  ExpertConfig expert = {};
  UnitGateConfig gate = {};

  /// The experts as those of any layer.
  MoEConfig experts() const {
    return {.d_model = d_model,
            .d_ff = d_ff,
            .num_experts = num_experts,
            .top_k = 1,
            .d_out = d_out,
            .expert = expert};
  }
  /// Throws std::invalid_argument naming the first value that breaks a rule.
  void validate() const {
    experts().validate();
    gate.validate();
    detail::throw_unless(slots >= 1, "SoftMoEConfig: slots = ", slots, ", expected at least 1");
  }
};

/// The router of a config, with random directions from the seed.
template <Real T>
SlotRouter<T> make_slot_router(const SoftMoEConfig& config, std::uint64_t seed) {
  config.validate();
  const UnitGate<T> gate(config.d_model, config.num_experts * config.slots, config.gate);
  return {gate, gate.initial_params(detail::seed_of(seed, 0))};
}

/// What a call works in. N are the tokens without padding, S the slots of a sequence, B the
/// sequences with a token. Rows in order of sequences are B S slots after each other.
template <Real T, class RouterT, class SetMemory>
struct SoftMoEMemory {
  using W = Wide<T>;

  TokenRows tokens;
  SlotOrder order;
  typename RouterT::Table routing;
  GrowingMatrix<T> gathered;  ///< (N, D) the tokens, where there is padding
  GrowingMatrix<W> wide_x;    ///< (N, D) the tokens in W, where they are narrower
  GrowingMatrix<W> slots;     ///< (B S, D) in order of sequences
  GrowingMatrix<T> slot_x;    ///< the same in T, where that is narrower
  GrowingMatrix<T> rows;      ///< (B S, D_out) outputs of the experts, in their order
  GrowingMatrix<W> slot_y;    ///< the same in order of sequences and in W, where rows is not
  GrowingMatrix<W> token_y;   ///< (N, D_out), where that is not y
  SetMemory experts;
  std::vector<kernels::GemmMemory<W>> packing;  ///< of each thread
};

/// Memory and results of an inference. Reused: it only grows. Not for two threads at once.
template <Real T, class RouterT, ExpertSet<T> Set>
struct SoftMoEScratch : SoftMoEMemory<T, RouterT, typename Set::Scratch> {};

/// What backward needs of a forward, and its own memory.
template <Real T, class RouterT, ExpertSet<T> Set>
struct SoftMoETape : SoftMoEMemory<T, RouterT, typename Set::Tape> {
  using W = Wide<T>;

  SlotGradient<W> gradient;
  GrowingMatrix<T> gathered_dy;  ///< (N, D_out)
  GrowingMatrix<W> wide_dy;      ///< (N, D_out)
  GrowingMatrix<W> dslot_y;      ///< (B S, D_out) in order of sequences
  GrowingMatrix<T> drows;        ///< the same in order of experts
  GrowingMatrix<T> dx_rows;      ///< (B S, D) in order of experts
  GrowingMatrix<W> dslots;       ///< the same in order of sequences
  GrowingMatrix<T> gate_dx;      ///< (N, D), where that is not dx
  GrowingMatrix<W> token_dx;     ///< (N, D), where that is not dx
  Index num_rows = 0;            ///< of x, with padding
  detail::Owner owner;           ///< the layer whose forward it is of
};

template <class RouterT, class Set>
struct SoftMoEGrads {
  GradsOf<RouterT> router;
  GradsOf<Set> experts;
};

}  // namespace moe::inline MOE_INSTRUCTION_SET
