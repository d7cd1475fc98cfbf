// SPDX-License-Identifier: Apache-2.0
// What the weights of a measured layer are: the names in the JSON of every bench, and the types
// behind them.
#pragma once

#include <moe/storage.hpp>
#include <string>
#include <type_traits>

namespace moe::bench {

enum class Type { f32, bf16, f64, q8, q4, q4_k, mxfp4, fp8 };
inline constexpr const char* type_names[] = {"f32", "bf16", "f64",   "q8",
                                             "q4",  "q4_k", "mxfp4", "fp8"};

inline std::string name(Type type) { return type_names[static_cast<std::size_t>(type)]; }
/// Of codes and scales, which are packed and not trained.
constexpr bool coded(Type type) { return type >= Type::q8; }

/// f(S()) with the storage of packed weights.
template <class F>
decltype(auto) with_storage(Type type, F&& f) {
  switch (type) {
    case Type::bf16:
      return f(bf16());
    case Type::f64:
      return f(double());
    case Type::q8:
      return f(q8());
    case Type::q4:
      return f(q4());
    case Type::q4_k:
      return f(q4_k());
    case Type::mxfp4:
      return f(mxfp4());
    case Type::fp8:
      return f(fp8());
    default:
      return f(float());
  }
}

/// The type whose storage is S.
template <class S>
Type type_of() {
  auto type = Type::f32;
  while (!with_storage(type, [](auto storage) { return std::is_same_v<decltype(storage), S>; })) {
    type = static_cast<Type>(static_cast<int>(type) + 1);
  }
  return type;
}

}  // namespace moe::bench
