// SPDX-License-Identifier: Apache-2.0
// What moe_speed measures: shapes, numbers of tokens, scalars, forward or training, and how evenly
// the router spreads the tokens; and which of the many combinations are worth a run.
#pragma once

#include <unistd.h>

#include <string>

#include "../shapes.hpp"
#include "../types.hpp"

namespace moe::bench {

/// Forward takes the packed form, training the layer itself.
enum class Pass { forward, train };

/// Even; with loads that fall as in Zipf's law; or every token to the same top_k experts.
enum class Routing { uniform, zipf, one };

struct Case {
  Type type;
  Pass pass;
  MoEConfig config;
  Routing routing;
  Index tokens;

  std::string type_name() const { return bench::name(type); }
  bool coded() const { return bench::coded(type); }
  std::string pass_name() const { return pass == Pass::forward ? "forward" : "train"; }
  std::string routing_name() const {
    return routing == Routing::uniform ? "uniform" : routing == Routing::zipf ? "zipf" : "one";
  }
  std::string shape() const { return shape_name(config); }
  std::string name() const {
    return type_name() + '/' + pass_name() + '/' + shape() + '/' + std::to_string(tokens) + '/' +
           routing_name();
  }

  /// So few tokens read each weight for hardly any work: it shall come from memory, as it does in
  /// a model of many layers.
  bool cold() const { return tokens <= 16; }
  /// At up to 64 rows an expert, memory may be slower than the arithmetic.
  bool may_wait_for_memory() const { return tokens * config.top_k <= 64 * config.num_experts; }
  bool same_layer(const Case& o) const {
    return type == o.type && pass == o.pass && shape() == o.shape() && routing == o.routing;
  }
};

/// A router with a bias, which steers the load.
inline MoEConfig steered(MoEConfig c) {
  c.router.logits.bias = true;
  return c;
}

inline MoEConfig switch_layer(Index d_model, Index d_ff, Index num_experts) {
  MoEConfig c = steered(equal_active(d_model, d_ff, num_experts, 1));
  c.expert = {.activation = Activation::relu, .gated = false};
  c.router.weight.renormalise = false;
  return c;
}

inline std::vector<MoEConfig> speed_shapes() {
  if (smoke()) {
    return {steered(equal_active(32, 64, 4, 2)), switch_layer(32, 48, 4)};
  }
  return {steered(equal_active(1024, 7168, 8, 2)),    // as wide as Mixtral, in small
          steered(equal_active(1024, 7168, 1, 1)),    // dense, of the same active FLOPs: the
                                                      // routing is less than 0.5 % of the time
          steered(equal_active(2048, 8192, 64, 8)),   // OLMoE
          steered(equal_active(2048, 8192, 1, 1)),    // dense, of the same active FLOPs
          steered(equal_active(2048, 6144, 128, 8)),  // Qwen3-30B-A3B
          switch_layer(768, 3072, 128),               // Switch Base
          steered(equal_active(1024, 1024, 4096, 8))};
}

/// Of weights and gradients. A packed layer is made from weights in bfloat16, which go afterwards.
inline double weight_bytes(const Case& c) {
  const double size = c.type == Type::f64 ? 8 : c.type == Type::f32 ? 4 : c.coded() ? 1 : 2;
  return static_cast<double>(parameters(c.config).total) *
         (c.pass == Pass::forward ? 2 + size : 2 * size);
}

inline double memory_bytes() {
  return static_cast<double>(sysconf(_SC_PHYS_PAGES)) * static_cast<double>(sysconf(_SC_PAGE_SIZE));
}

/// A quarter of the memory is left to rows, tapes, probes and other programs.
inline bool fits(const Case& c) { return weight_bytes(c) <= 0.75 * memory_bytes(); }

/// All of it would take hours.
inline bool worth_a_run(const Case& c) {
  const bool usual_tokens = c.tokens == 128 || c.tokens == 2048;
  if (c.coded() && (c.pass == Pass::train || c.routing != Routing::uniform)) {
    return false;
  }
  if (smoke()) {
    return true;
  }
  if (c.routing != Routing::uniform) {
    return c.tokens == 2048 && c.config.num_experts > 1;
  }
  return usual_tokens || (c.pass == Pass::forward && c.type != Type::f64);
}

/// Cases of one layer stand together.
inline std::vector<Case> speed_cases() {
  const std::vector<Index> tokens =
      smoke() ? std::vector<Index>{1, 40} : std::vector<Index>{1, 4, 16, 64, 128, 512, 2048, 8192};
  std::vector<Case> cases;
  for (const MoEConfig& config : speed_shapes()) {
    for (const Type type : {Type::f32, Type::bf16, Type::f64, Type::q8, Type::q4, Type::q4_k,
                            Type::mxfp4, Type::fp8}) {
      for (const Pass pass : {Pass::forward, Pass::train}) {
        for (const Routing routing : {Routing::uniform, Routing::zipf, Routing::one}) {
          for (const Index n : tokens) {
            const Case c{type, pass, config, routing, n};
            if (worth_a_run(c)) {
              cases.push_back(c);
            }
          }
        }
      }
    }
  }
  return cases;
}

}  // namespace moe::bench
