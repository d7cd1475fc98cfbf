// SPDX-License-Identifier: Apache-2.0
// The storages that the library moe::compiled packs layers in, which both sides read here: a
// storage goes across as its place in the list. They are only named, as what packs and multiplies
// them is the library's.
#pragma once

#include <concepts>
#include <iterator>
#include <memory>
#include <type_traits>

#include "../types.hpp"
#include "boundary.hpp"

namespace moe::inline MOE_INSTRUCTION_SET {

struct q8;
struct q4;
struct q4_k;
struct mxfp4;
struct fp8;

namespace compiled {

template <class... S>
struct StorageList {
  template <class T>
  static constexpr bool has = (std::same_as<T, S> || ...);

  template <class T>
  static constexpr boundary::Size place_of() {
    constexpr bool is_it[] = {std::same_as<T, S>...};
    boundary::Size place = 0;
    while (place < std::ssize(is_it) && !is_it[place]) {
      ++place;
    }
    return place;
  }

  /// make(std::type_identity<S>) of the storage at a place; null if there is none.
  template <class Made, class Make>
  static std::unique_ptr<Made> make_of(boundary::Size place, Make&& make) {
    std::unique_ptr<Made> made;
    const auto make_if_it = [&]<class T>(std::type_identity<T> storage) {
      if (place_of<T>() == place) {
        made = make(storage);
      }
    };
    (make_if_it(std::type_identity<S>()), ...);
    return made;
  }
};

using Storages = StorageList<float, bf16, q8, q4, q4_k, mxfp4, fp8>;

}  // namespace compiled
}  // namespace moe::inline MOE_INSTRUCTION_SET
