// SPDX-License-Identifier: Apache-2.0
// What the processor has is offered, the best first; a name or the environment chooses another, and
// a wrong name is refused.
#include "moe/compiled/instruction_sets.hpp"

#include <gtest/gtest.h>

#include <cstdlib>
#include <string>
#include <utility>

#include "moe/compiled.hpp"
#include "support/throws.hpp"

#ifdef MOE_TEST_SEVERAL_SETS
#include <cpuid.h>
#endif

namespace moe::instruction_sets_test {
namespace {

using testing::message_of;

const MoEConfig config{.d_model = 4, .d_ff = 4, .num_experts = 2, .top_k = 1};

std::string expected() {
  std::string names;
  for (const std::string_view name : compiled::instruction_sets()) {
    (names += names.empty() ? "" : ", ") += name;
  }
  return "expected one that library and processor have: " + names;
}

std::string_view environment(const char* name) {
  const char* value = std::getenv(name);
  return value == nullptr ? "" : value;
}

#ifdef MOE_TEST_SEVERAL_SETS
/// A bit of cpuid's leaf 7.
bool has_bit(unsigned part, unsigned of_registers, int bit) {
  unsigned registers[4] = {};
  __get_cpuid_count(7, part, registers, registers + 1, registers + 2, registers + 3);
  return (registers[of_registers] >> bit & 1) != 0;
}

TEST(CompiledInstructionSets, AreThoseOfTheProcessorTheBestFirst) {
  const bool has_bf16 =
                 __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512vbmi"),
             has_avx_vnni = has_bit(1, 0, 4), has_amx = has_bit(0, 3, 22);
  const std::pair<std::string_view, bool> sets[] = {
      {"avx512_bf16_vnni", has_bf16 && !has_amx},
      {"avx512_vnni", __builtin_cpu_supports("avx512vnni")},
      {"avx512_bf16_vnni", has_bf16 && has_amx},
      {"avx512", __builtin_cpu_supports("avx512vl")},
      {"avx2_fma_vnni", has_avx_vnni},
      {"avx2_fma", __builtin_cpu_supports("avx2")},
      {"sse2", true}};
  std::vector<std::string_view> want;
  for (const auto& [name, has] : sets) {
    if (has) {
      want.push_back(name);
    }
  }
  EXPECT_EQ(compiled::instruction_sets(), want);
}
#endif

TEST(CompiledInstructionSets, AreChosenByName) {
  EXPECT_FALSE(compiled::instruction_sets().empty());
  for (const std::string_view name : compiled::instruction_sets()) {
    EXPECT_EQ(compiled::MoELayer<float>(config, 1, name).instruction_set(), name);
  }
  EXPECT_EQ(message_of([] { compiled::MoELayer<float>(config, 1, "avx9"); }),
            "instruction_set = avx9, " + expected());
}

// CTest runs this one with and without MOE_INSTRUCTION_SET, and on processors whose best it knows.
TEST(CompiledInstructionSets, AreTheBestOrWhatTheEnvironmentNames) {
  const std::string_view asked = environment("MOE_INSTRUCTION_SET"),
                         best = environment("MOE_TEST_BEST_SET");
  if (asked == "wrong") {
    for (int twice = 0; twice < 2; ++twice) {
      EXPECT_EQ(message_of([] { compiled::MoELayer<float>(config, 1); }),
                "environment: MOE_INSTRUCTION_SET = wrong, " + expected());
    }
    return;
  }
  const std::string_view chosen = compiled::default_instruction_set();
  EXPECT_EQ(chosen, asked.empty() ? compiled::instruction_sets().front() : asked);
  EXPECT_EQ(chosen, best.empty() ? chosen : best);
  EXPECT_EQ(compiled::MoELayer<float>(config, 1).instruction_set(), chosen);
}

}  // namespace
}  // namespace moe::instruction_sets_test
