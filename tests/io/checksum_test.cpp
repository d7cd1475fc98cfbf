// SPDX-License-Identifier: Apache-2.0
#include "moe/io/checksum.hpp"

#include <gtest/gtest.h>

#include <set>
#include <vector>

namespace moe::io::detail::checksum_test {
namespace {

std::vector<std::byte> some_bytes(std::size_t size) {
  std::vector<std::byte> bytes(size);
  for (std::size_t i = 0; i < size; ++i) {
    bytes[i] = static_cast<std::byte>(i * 37 % 251);
  }
  return bytes;
}

TEST(Checksum, IsTheSameEverywhere) {
  EXPECT_EQ(checksum({}), 0xdb940cd3c3f02698U);
  EXPECT_EQ(checksum(some_bytes(64)), 0xf2a7b72ee3c4109aU);
  EXPECT_EQ(checksum(some_bytes(4096)), 0xc1ff5bbe677e6509U);
}

TEST(Checksum, ChangesWithEveryBit) {
  std::vector<std::byte> bytes = some_bytes(192 + 13);  // the last words are not whole
  std::set<std::uint64_t> sums{checksum(bytes)};
  for (std::byte& byte : bytes) {
    for (int bit = 0; bit < 8; ++bit) {
      byte ^= std::byte{1} << bit;
      sums.insert(checksum(bytes));
      byte ^= std::byte{1} << bit;
    }
  }
  EXPECT_EQ(sums.size(), (192U + 13) * 8 + 1);
}

TEST(Checksum, ChangesWithTwoBitsOfWordsThatMeetInOneSum) {
  std::vector<std::byte> bytes = some_bytes(256);
  std::set<std::uint64_t> sums;
  for (int bit = 0; bit < 64; ++bit) {
    const auto flip = [&] {
      bytes[static_cast<std::size_t>(bit / 8)] ^= std::byte{1} << bit % 8;
      bytes[static_cast<std::size_t>(64 + bit / 8)] ^= std::byte{1} << bit % 8;
    };
    flip();
    sums.insert(checksum(bytes));
    flip();
  }
  sums.insert(checksum(bytes));
  EXPECT_EQ(sums.size(), 65U);
}

TEST(Checksum, TellsZerosOfDifferentLengthsApart) {
  std::set<std::uint64_t> sums;
  for (std::size_t size = 0; size < 64 * 20; size += 16) {
    sums.insert(checksum(std::vector<std::byte>(size)));
  }
  EXPECT_EQ(sums.size(), 80U);
}

}  // namespace
}  // namespace moe::io::detail::checksum_test
