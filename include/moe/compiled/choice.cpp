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
const moe::boundary::InstructionSet* moe_compiled_v4();
const moe::boundary::InstructionSet* moe_compiled_v4_bf16();
#endif
}

namespace moe::boundary {
namespace {

using Sets = std::vector<const InstructionSet*>;

#ifdef MOE_COMPILED_X86_64
/// Of x86-64-v3, what no __builtin_cpu_supports of Clang 14 knows. All of it works on the registers
/// of AVX, for which that one also asks the operating system.
bool has_rest_of_v3() {
  unsigned a = 0, b = 0, c = 0, d = 0, extended_c = 0;
  return __get_cpuid(1, &a, &b, &c, &d) != 0 &&
         __get_cpuid(0x80000001, &a, &b, &extended_c, &d) != 0 && (c & bit_MOVBE) != 0 &&
         (c & bit_F16C) != 0 && (extended_c & bit_LZCNT) != 0;
}
bool has_v3() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
         __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2") && has_rest_of_v3();
}
bool has_v4() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
         __builtin_cpu_supports("avx512vl");
}

Sets sets_of_processor() {
  __builtin_cpu_init();
  Sets sets{moe_compiled_baseline()};
  if (has_v3()) {
    sets.insert(sets.begin(), moe_compiled_v3());
    if (has_v4()) {
      sets.insert(sets.begin(), moe_compiled_v4());
      if (__builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512vnni")) {
        sets.insert(sets.begin(), moe_compiled_v4_bf16());
      }
    }
  }
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
