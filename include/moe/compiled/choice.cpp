// SPDX-License-Identifier: Apache-2.0
// Chooses among the objects of one_set.cpp. Compiled for the least instruction set, as it runs
// before anything is known of the processor.
#include <cstdlib>
#include <string>
#include <vector>

#include "../detail/check.hpp"
#include "boundary.hpp"

#ifdef MOE_COMPILED_X86_64
#include <cpuid.h>
#endif

// The entry of each object, as cmake/compiled.cmake names it.
extern "C" {
const moe::boundary::InstructionSet* moe_compiled_baseline();
#ifdef MOE_COMPILED_X86_64
const moe::boundary::InstructionSet* moe_compiled_v3();
const moe::boundary::InstructionSet* moe_compiled_v3_vnni();
const moe::boundary::InstructionSet* moe_compiled_v4();
const moe::boundary::InstructionSet* moe_compiled_v4_vnni();
const moe::boundary::InstructionSet* moe_compiled_v4_bf16();
#endif
}

namespace moe::boundary {
namespace {

using Sets = std::vector<const InstructionSet*>;

#ifdef MOE_COMPILED_X86_64
struct Registers {
  unsigned a = 0, b = 0, c = 0, d = 0;
};
/// Zeros where the processor has no such leaf.
Registers cpuid(unsigned leaf, unsigned part = 0) {
  Registers found;
  __get_cpuid_count(leaf, part, &found.a, &found.b, &found.c, &found.d);
  return found;
}

// What no __builtin_cpu_supports of Clang 14 knows. The first two work on the registers of AVX, for
// which those beside them also ask the operating system.
bool has_rest_of_v3() {
  const unsigned c = cpuid(1).c;
  return (c & bit_MOVBE) != 0 && (c & bit_F16C) != 0 && (cpuid(0x80000001).c & bit_LZCNT) != 0;
}
bool has_avx_vnni() { return (cpuid(7, 1).a & 1U << 4) != 0; }
bool has_amx_bf16() { return (cpuid(7).d & 1U << 22) != 0; }

bool has_v3() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
         __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2") && has_rest_of_v3();
}
bool has_v4() {
  return has_v3() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
         __builtin_cpu_supports("avx512vl");
}
bool has_v4_vnni() { return has_v4() && __builtin_cpu_supports("avx512vnni"); }
/// With VBMI, which decodes fp8: all processors with AVX512_BF16 have it but Cooper Lake.
bool has_v4_bf16() {
  return has_v4_vnni() && __builtin_cpu_supports("avx512bf16") &&
         __builtin_cpu_supports("avx512vbmi");
}

Sets sets_of_processor() {
  __builtin_cpu_init();
  Sets sets;
  const auto add = [&](bool has, const InstructionSet* (*set)()) {
    if (has) {
      sets.push_back(set());
    }
  };
  // Beside AMX the products of bfloat16 are slower than those of float: see kernels/bfloat16.hpp.
  add(has_v4_bf16() && !has_amx_bf16(), moe_compiled_v4_bf16);
  add(has_v4_vnni(), moe_compiled_v4_vnni);
  add(has_v4_bf16() && has_amx_bf16(), moe_compiled_v4_bf16);
  add(has_v4(), moe_compiled_v4);
  add(has_v3() && has_avx_vnni(), moe_compiled_v3_vnni);
  add(has_v3(), moe_compiled_v3);
  add(true, moe_compiled_baseline);
  return sets;
}
#else
Sets sets_of_processor() { return {moe_compiled_baseline()}; }
#endif

const InstructionSet& named(std::string_view name, const char* asked_by) {
  std::string names;
  for (const InstructionSet* set : instruction_sets()) {
    if (set->name == name) {
      return *set;
    }
    (names += names.empty() ? "" : ", ") += set->name;
  }
  moe::detail::fail(asked_by, " = ", name,
                    ", expected one that library and processor have: ", names);
}

const InstructionSet& default_set() {
  const char* asked = std::getenv("MOE_INSTRUCTION_SET");
  return asked == nullptr || *asked == '\0' ? *instruction_sets().front()
                                            : named(asked, "environment: MOE_INSTRUCTION_SET");
}

}  // namespace

std::span<const InstructionSet* const> instruction_sets() {
  static const Sets sets = sets_of_processor();
  return sets;
}

const InstructionSet& instruction_set(std::string_view name) {
  if (name.empty()) {
    static const InstructionSet& chosen = default_set();
    return chosen;
  }
  return named(name, "instruction_set");
}

}  // namespace moe::boundary
