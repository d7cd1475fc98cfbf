// SPDX-License-Identifier: Apache-2.0
// What every rule says of itself, whether it looks across the batch and whether it is causal: one
// token is changed, and it is seen whose rows of the table change with it.
#include <gtest/gtest.h>

#include "moe/routing.hpp"
#include "support/matrix_near.hpp"
#include "support/random_matrix.hpp"

namespace moe::causality_test {
namespace {

using testing::random_matrix;

constexpr Index N = 12, L = 6, D = 5, E = 4;  // two sequences

/// Which rows a change of one token reaches, over many changes: the token's own, those before and
/// behind it in its sequence, and those of the other.
struct Reach {
  bool itself = false, earlier = false, later = false, other = false;

  friend bool operator==(const Reach&, const Reach&) = default;
};
constexpr Reach one_token{.itself = true};
constexpr Reach sequence{.itself = true, .earlier = true, .later = true};

/// write(x, row) is what a token gets: all numbers that must be the same bits.
template <class Write>
Reach reach_of(Write&& write) {
  Reach reach;
  for (std::uint64_t seed = 0; seed < 40; ++seed) {
    const Matrix<float> x = random_matrix<float>(N, D, 2 * seed);
    const Index token = static_cast<Index>(seed) % N;
    Matrix<float> changed = x;
    changed.row(token) = 3.0F * random_matrix<float>(1, D, 2 * seed + 1);
    const Matrix<float> before = write(x), after = write(changed);
    for (Index row = 0; row < N; ++row) {
      if (testing::same_bits(before.row(row), after.row(row))) {
        continue;
      }
      bool& reached = row == token           ? reach.itself
                      : row / L != token / L ? reach.other
                      : row < token          ? reach.earlier
                                             : reach.later;
      reached = true;
    }
  }
  return reach;
}

CallOptions call_of(bool noisy) {
  return {.tokens = {.sequence_length = L},
          .noise_seed = noisy ? std::optional<std::uint64_t>(7) : std::nullopt};
}

/// The choices and weights of every token, and its scores.
template <class RouterT>
Reach reach_of_router(const RouterT& router, bool noisy) {
  return reach_of([&](const Matrix<float>& x) {
    typename RouterT::Table table;
    router.route(x, call_of(noisy), table);
    // However many choices the table has room for, up to E: what is not used is `none` with 0.
    Matrix<float> rows = Matrix<float>::Zero(N, 3 * E);
    rows.leftCols(E).setConstant(static_cast<float>(none));
    rows.leftCols(table.top_k()) = table.expert.template cast<float>();
    rows.middleCols(E, table.top_k()) = table.weight;
    rows.rightCols(table.probs.cols()) = table.probs;
    return rows;
  });
}

template <class Rule>
Reach reach_of_rule(const Rule& rule, bool noisy = false) {
  return reach_of_router(linear_router<float>(D, E, rule, 3), noisy);
}

TEST(Causality, OfRulesForATokenIsThatNobodyElseChanges) {
  for (const bool noisy : {false, true}) {
    EXPECT_EQ(reach_of_router(Router<float>(D, E, 2, {}, 3), noisy), one_token);
    EXPECT_EQ(reach_of_router(Router<float>(D, E, 2, {.logits = {.noisy = true}}, 3), noisy),
              one_token);
    EXPECT_EQ(reach_of_rule(DynamicTopK<float>(E, {.top_p = 0.7}), noisy), one_token);
    EXPECT_EQ(reach_of_rule(ReluRouting<float>(E), noisy), one_token);
    EXPECT_EQ(reach_of_rule(SecondExpert<float>(E, {}), noisy), one_token);
    EXPECT_EQ(reach_of_rule(SecondExpert<float>(E, {.policy = SecondPolicy::sampled}), noisy),
              one_token);
    EXPECT_EQ(reach_of_rule(SparseMixer<float>(E, {.jitter = 0.3}), noisy), one_token);
    EXPECT_EQ(reach_of_rule(TwoLevel<float>(E, {.num_groups = 2}), noisy), one_token);
    for (const auto order : {UniformOrder::random, UniformOrder::round_robin}) {
      EXPECT_EQ(reach_of_rule(UniformChoice<float>(E, {.order = order}), noisy), one_token);
    }
  }
}

TEST(Causality, OfRulesForTheWholeTableIsThatEarlierTokensOfTheSequenceChange) {
  for (const bool noisy : {false, true}) {
    EXPECT_EQ(reach_of_rule(ExpertChoice<float>({}), noisy), sequence);
    EXPECT_EQ(reach_of_rule(SequenceTopK<float>(E, {}), noisy), sequence);
    EXPECT_EQ(
        reach_of_router(linear_router<float>(D, 1, TopTokens<float>({.capacity = 0.5}), 3), noisy),
        sequence);
  }
}

TEST(Causality, OfRulesThatBalanceIsLostInTrainingAlone) {
  EXPECT_EQ(reach_of_rule(Sinkhorn<float>(E, {}), true), sequence);
  EXPECT_EQ(reach_of_rule(Sinkhorn<float>(E, {.in_evaluation = true})), sequence);
  EXPECT_EQ(reach_of_rule(Sinkhorn<float>(E, {})), one_token);
  EXPECT_EQ(reach_of_rule(BalancedAssignment<float>({}), true), sequence);
  EXPECT_EQ(reach_of_rule(BalancedAssignment<float>({.in_evaluation = true})), sequence);
  EXPECT_EQ(reach_of_rule(BalancedAssignment<float>({})), one_token);
}

TEST(Causality, OfTopTokensAskedAloneIsThatNobodyElseChanges) {
  const auto router = linear_router<float>(D, 1, TopTokens<float>({}), 3);
  EXPECT_EQ(reach_of([&](const Matrix<float>& x) {
              LinearRouter<float, TopTokens<float>>::Table table;
              router.route(x, call_of(false), table);
              return Matrix<float>(table.logits.unaryExpr(
                  [&](float logit) { return router.rule().takes(logit) ? 1.0F : 0.0F; }));
            }),
            one_token);
}

template <class Gate>
Reach reach_of_gate(const Gate& gate) {
  const TopK<float> rule(E, 2, {});
  using RouterT = GatedRouter<float, Gate, TopK<float>>;
  return reach_of_router(RouterT(gate, rule, {gate.initial_params(5), rule.initial_params()}),
                         true);
}

TEST(Causality, OfGatesIsThatNobodyElseChanges) {
  const LogitsConfig noisy{.input_jitter = 0.1, .bias = true, .noisy = true};
  EXPECT_EQ(reach_of_gate(LinearGate<float>(D, E, noisy)), one_token);
  EXPECT_EQ(reach_of_gate(NormGate<float>(D, E, noisy, {})), one_token);
  EXPECT_EQ(reach_of_gate(TwoLayerGate<float>(D, 3, E, noisy)), one_token);
  EXPECT_EQ(reach_of_gate(CosineGate<float>(D, E, {.width = 3})), one_token);
  EXPECT_EQ(reach_of_gate(UnitGate<float>(D, E, {})), one_token);
}

TEST(Causality, OfSlotsIsThatEveryTokenOfTheSequenceHasAnotherPartInThem) {
  const UnitGate<float> gate(D, E, {});
  const SlotRouter<float> router(gate, gate.initial_params(5));
  const auto table_of = [&](const Matrix<float>& x) {
    SlotRouter<float>::Table table;
    table.begin = {0, L, N};
    router.route(x, {}, table);
    return table;
  };
  EXPECT_EQ(reach_of([&](const Matrix<float>& x) {
              return Matrix<float>(table_of(x).dispatch.transpose());
            }),
            sequence);
  EXPECT_EQ(reach_of([&](const Matrix<float>& x) { return Matrix<float>(table_of(x).combine); }),
            one_token);
}

}  // namespace
}  // namespace moe::causality_test
