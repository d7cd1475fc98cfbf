// What the units of instruction_sets.cpp share: plain types only, as an Eigen matrix laid out by
// one unit is not to be touched by another.
#pragma once

#include <moe/config.hpp>
#include <string>
#include <vector>

struct Unit {
  std::string instruction_set;
  std::vector<double> plain, packed, packed_bf16;  // y (tokens, d_model) of each form of the layer
  std::vector<double> dx;                          // (tokens, d_model), for a dy that is x
};

inline constexpr std::ptrdiff_t unit_tokens = 37;

inline moe::MoEConfig unit_config() {
  return {.d_model = 72, .d_ff = 100, .num_experts = 6, .top_k = 2};
}

inline std::vector<float> unit_input() {
  std::vector<float> x;
  for (int i = 0; i < unit_tokens * 72; ++i) {
    x.push_back(static_cast<float>(i * 7919 % 1009) / 504.0F - 1.0F);
  }
  return x;
}

Unit unit_of_baseline();
Unit unit_of_v3();
Unit unit_of_v3_vnni();
Unit unit_of_v4();
Unit unit_of_v4_bf16();
