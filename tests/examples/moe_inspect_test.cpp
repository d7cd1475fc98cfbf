// SPDX-License-Identifier: Apache-2.0
// What examples/moe_inspect says that a layer has, of families of all kinds.
#include <gtest/gtest.h>

#include "../../examples/moe_inspect/describe.hpp"
#include "../io/family_configs.hpp"

namespace moe::moe_inspect_test {
namespace {

using ::moe_inspect::Json;

io::LayerConfig config_of(std::string_view family) {
  return io::layer_config(*io::find_family(family),
                          io::ModelConfig::parse(io::testing::config_text(family), "config"), 0);
}

TEST(MoeInspect, SaysOfExpertsOfRankOneNothingThatOnlyAFeedForwardHas) {
  const io::LayerConfig doge = config_of("doge");
  EXPECT_EQ(::moe_inspect::expert_of(doge), (Json{{"kind", "rank_one"}, {"activation", "silu"}}));
  const Json sizes = ::moe_inspect::sizes_of(doge);
  EXPECT_FALSE(sizes.contains("d_ff"));
  EXPECT_EQ(sizes["num_experts"], 4);
  const Json shared = ::moe_inspect::shared_of(doge);
  EXPECT_EQ(shared["kind"], "feed_forward");
  EXPECT_EQ(shared["d_ff"], 6);
  EXPECT_EQ(shared["gated"], true);
}

TEST(MoeInspect, SaysWhichFeedForwardsHaveAGateAndALimitOfIt) {
  EXPECT_EQ(::moe_inspect::expert_of(config_of("mixtral")), (Json{{"kind", "feed_forward"},
                                                                  {"gated", true},
                                                                  {"activation", "silu"},
                                                                  {"bias", false},
                                                                  {"up_offset", 0.0},
                                                                  {"limit", "none"}}));
  EXPECT_EQ(::moe_inspect::expert_of(config_of("nemotron_h")), (Json{{"kind", "feed_forward"},
                                                                     {"gated", false},
                                                                     {"activation", "relu_squared"},
                                                                     {"bias", false}}));
  EXPECT_EQ(::moe_inspect::sizes_of(config_of("nemotron_h"))["latent_width"], 5);
  EXPECT_EQ(::moe_inspect::expert_of(config_of("gpt_oss")), (Json{{"kind", "feed_forward"},
                                                                  {"gated", true},
                                                                  {"activation", "gelu_quick"},
                                                                  {"alpha", 1.702},
                                                                  {"bias", true},
                                                                  {"up_offset", 1.0},
                                                                  {"limit", 7.0},
                                                                  {"clamp", "before"}}));
}

TEST(MoeInspect, SaysWhetherTheSharedExpertIsOneABiasOrNone) {
  EXPECT_EQ(::moe_inspect::shared_of(config_of("mixtral")), (Json{{"kind", "none"}}));
  EXPECT_EQ(::moe_inspect::shared_of(config_of("jetmoe")), (Json{{"kind", "bias"}}));
  const Json qwen = ::moe_inspect::shared_of(config_of("qwen2_moe"));
  EXPECT_EQ(qwen["d_ff"], 3);
  EXPECT_EQ(qwen["output_gate"], true);
}

}  // namespace
}  // namespace moe::moe_inspect_test
