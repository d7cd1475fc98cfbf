// SPDX-License-Identifier: Apache-2.0
// Tests of the allocation counter: a counter that missed Eigen's malloc would prove nothing.
#include "support/count_allocations.hpp"

#include <gtest/gtest.h>

#include <new>
#include <thread>
#include <vector>

#include "moe/types.hpp"

#if MOE_COUNTS_ALLOCATIONS
namespace moe::testing::count_allocations_test {
namespace {

TEST(CountAllocations, IsZeroForWorkWithoutMemory) {
  Matrix<float> m = Matrix<float>::Ones(3, 3);
  EXPECT_EQ(count_allocations([&] { m *= 2.0f; }), 0);
}

TEST(CountAllocations, SeesEigenAndTheStandardLibrary) {
  Matrix<float> m;
  std::vector<int> v;
  EXPECT_EQ(count_allocations([&] { m.resize(5, 7); }), 1);
  EXPECT_EQ(count_allocations([&] { v.resize(5); }), 1);
}

TEST(CountAllocations, SeesAlignedNewAndTheFunctionsOfC) {
  void* volatile kept = nullptr;  // volatile: a pair of malloc and free would be optimised away
  const auto sees = [&](auto allocate) {
    EXPECT_EQ(count_allocations([&] { kept = allocate(); }), 1);
    std::free(kept);
  };
  EXPECT_EQ(count_allocations([&] { kept = ::operator new(64, std::align_val_t(64)); }), 1);
  ::operator delete(kept, std::align_val_t(64));
  sees([] { return std::malloc(8); });
  sees([] { return std::calloc(8, 8); });
  sees([] { return std::realloc(nullptr, 8); });
  sees([] { return std::aligned_alloc(64, 64); });
  sees([] {
    void* memory = nullptr;
    return posix_memalign(&memory, 64, 64) == 0 ? memory : nullptr;
  });
}

TEST(CountAllocations, SeesASilentCopyOfARef) {
  const Eigen::MatrixXf columns = Eigen::MatrixXf::Ones(4, 4);
  const Matrix<float> rows = columns;
  const auto read = [](ConstMatrixRef<float> m) { return m(0, 0); };
  float sum = 0;
  EXPECT_EQ(count_allocations([&] { sum += read(rows); }), 0);
  EXPECT_EQ(count_allocations([&] { sum += read(rows.topRows(2)); }), 0);
  EXPECT_EQ(count_allocations([&] { sum += read(columns); }), 1);
  EXPECT_EQ(sum, 3.0f);
}

TEST(CountAllocations, SeesOtherThreads) {
  std::vector<int> v;
  const auto count = [](auto work) { return count_allocations([&] { std::thread(work).join(); }); };
  count([] {});  // the first thread of a program allocates more
  const auto without = count([] {});
  EXPECT_EQ(count([&] { v.resize(9); }), without + 1);
}

}  // namespace
}  // namespace moe::testing::count_allocations_test
#endif
