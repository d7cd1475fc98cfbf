// SPDX-License-Identifier: Apache-2.0
// The checksum of files of our own: finds what disks and copies damage, not who means harm. It
// costs less than reading the bytes from memory.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>

#include "../instruction_set.hpp"

namespace moe::inline MOE_INSTRUCTION_SET::io::detail {

/// Zeros stand for what the last 64 bytes lack. Each step is one to one in the number and in the
/// sum, as in FNV-1a (Fowler, Noll and Vo 1991), so that damage within 8 bytes always changes it.
/// Both are multiplied, so that what two numbers lack in few bits does not cancel out.
inline std::uint64_t checksum(std::span<const std::byte> bytes) {
  constexpr std::size_t lanes = 8, word = sizeof(std::uint64_t);
  const auto add = [](std::uint64_t sum, std::uint64_t number) {
    return std::rotl(sum ^ number * 0x9E3779B97F4A7C15u, 29) * 0xD6E8FEB86659FD93u;
  };
  std::uint64_t sums[lanes] = {1, 2, 3, 4, 5, 6, 7, 8};
  const auto add_block = [&](const std::byte* block, std::size_t size) {
    std::uint64_t numbers[lanes] = {};
    std::memcpy(numbers, block, size);
    for (std::size_t lane = 0; lane < lanes; ++lane) {
      sums[lane] = add(sums[lane], numbers[lane]);
    }
  };
  constexpr std::size_t block = lanes * word;
  std::size_t at = 0;
  for (; at + block <= bytes.size(); at += block) {
    add_block(bytes.data() + at, block);  // a size that the compiler knows: no call in the loop
  }
  if (at < bytes.size()) {
    add_block(bytes.data() + at, bytes.size() - at);
  }
  std::uint64_t all = bytes.size();
  for (const std::uint64_t sum : sums) {
    all = add(all, sum);
  }
  return all ^ all >> 32;
}

}  // namespace moe::inline MOE_INSTRUCTION_SET::io::detail
