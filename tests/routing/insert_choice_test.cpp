// SPDX-License-Identifier: Apache-2.0
#include "moe/routing/insert_choice.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <vector>

namespace moe::insert_choice_test {
namespace {

TEST(InsertChoice, SortsByWeightWithTiesInOrderOfComingAndNaNLast) {
  const double nan = std::nan("");
  const std::vector<double> weights = {0.2, nan, 0.5, 0.2, 0.5, nan, 0.1};
  std::vector<ExpertId> expert(weights.size(), none);
  std::vector<double> weight(weights.size(), 0.0);
  for (std::size_t e = 0; e < weights.size(); ++e) {
    insert_choice(static_cast<ExpertId>(e), weights[e], static_cast<Index>(e), expert.data(),
                  weight.data());
  }
  EXPECT_EQ(expert, (std::vector<ExpertId>{2, 4, 0, 3, 6, 1, 5}));
  EXPECT_EQ(weight[0], 0.5);
  EXPECT_EQ(weight[4], 0.1);
  EXPECT_TRUE(std::isnan(weight[5]) && std::isnan(weight[6]));
}

}  // namespace
}  // namespace moe::insert_choice_test
