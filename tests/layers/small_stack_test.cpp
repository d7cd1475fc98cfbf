// SPDX-License-Identifier: Apache-2.0
// Threads with little stack, as of musl, macOS or a server with thousands of them: what a call
// needs beyond 128 KiB lies in its scratch or tape.
#include <gtest/gtest.h>
#include <pthread.h>
#include <sys/mman.h>

#include <functional>

#include "../support/random_matrix.hpp"
#include "moe/moe.hpp"

// The sanitizers make every frame larger.
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define MOE_FRAMES_AS_COMPILED 0
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define MOE_FRAMES_AS_COMPILED 0
#endif
#endif
#ifndef MOE_FRAMES_AS_COMPILED
#define MOE_FRAMES_AS_COMPILED 1
#endif

namespace moe::small_stack_test {
namespace {

using testing::random_matrix;

constexpr std::size_t small_stack = std::size_t{128} << 10;

/// Runs f in a thread with a small stack, below which nothing lies that it could hit by luck.
void run_with_small_stack(const std::function<void()>& f) {
  constexpr std::size_t guard = std::size_t{4} << 20;
  void* base = mmap(nullptr, guard + small_stack, PROT_READ | PROT_WRITE,
                    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  ASSERT_NE(base, MAP_FAILED);
  ASSERT_EQ(mprotect(base, guard, PROT_NONE), 0);
  pthread_attr_t attributes;
  pthread_attr_init(&attributes);
  ASSERT_EQ(pthread_attr_setstack(&attributes, static_cast<char*>(base) + guard, small_stack), 0);
  pthread_t thread;
  const auto call = [](void* function) -> void* {
    (*static_cast<const std::function<void()>*>(function))();
    return nullptr;
  };
  ASSERT_EQ(pthread_create(&thread, &attributes, call, const_cast<std::function<void()>*>(&f)), 0);
  pthread_join(thread, nullptr);
  pthread_attr_destroy(&attributes);
  munmap(base, guard + small_stack);
}

/// Wider than a panel, with few rows an expert and with many.
template <class T>
struct Work {
  MoELayer<T> layer;
  Matrix<T> x, y, dx;
  typename MoELayer<T>::Scratch scratch;
  typename MoELayer<T>::Tape tape;
  typename MoELayer<T>::Grads grads;
  int threads;

  Work(Index tokens, int num_threads)
      : layer({.d_model = 96,
               .d_ff = 160,
               .num_experts = 4,
               .top_k = 2,
               .expert = {.bias = true},
               .router = {.logits = {.noisy = true}},
               .shared = SharedExpertConfig{.d_ff = 80, .output_gate = true}},
              1),
        x(random_matrix<T>(tokens, 96, 2)),
        y(tokens, 96),
        dx(tokens, 96),
        grads(layer.zero_grads()),
        threads(num_threads) {}

  void step() {
    layer.forward(x, y, scratch, {.num_threads = threads});
    layer.forward(x, y, tape, {.num_threads = threads, .noise_seed = 3});
    layer.backward(x, y, tape, dx, grads);
  }
};

template <class T>
class SmallStack : public ::testing::Test {
 protected:
  void SetUp() override {
    if (MOE_FRAMES_AS_COMPILED == 0) {
      GTEST_SKIP() << "frames of a sanitizer are larger";
    }
  }
};
using Scalars = ::testing::Types<float, double, bf16, Eigen::half>;
TYPED_TEST_SUITE(SmallStack, Scalars);

TYPED_TEST(SmallStack, IsEnoughForInferenceAndTraining) {
  for (const Index tokens : {5, 200}) {
    Work<TypeParam> work(tokens, 1);
    run_with_small_stack([&] { work.step(); });
    EXPECT_TRUE(work.dx.array().isFinite().all());
  }
}

TYPED_TEST(SmallStack, IsEnoughForTheProductAlone) {
  using T = TypeParam;
  const Matrix<T> a = random_matrix<T>(70, 1500, 4), b = random_matrix<T>(1500, 90, 5);
  Matrix<T> c(70, 90);
  kernels::GemmMemory<T> memory;
  run_with_small_stack([&] {
    kernels::gemm<T>(kernels::view(a), kernels::view(b), c, kernels::Update::assign, memory);
  });
  EXPECT_TRUE(c.array().isFinite().all());
}

template <class T>
class SmallStackOfPacked : public SmallStack<T> {};
using Storages = ::testing::Types<float, double, bf16>;
TYPED_TEST_SUITE(SmallStackOfPacked, Storages);

TYPED_TEST(SmallStackOfPacked, IsEnoughForInference) {
  using S = TypeParam;
  using W = Wide<S>;
  const auto packed = pack<S>(Work<W>(1, 1).layer);
  const Matrix<W> x = random_matrix<W>(200, 96, 6);
  Matrix<W> y(200, 96);
  typename std::remove_const_t<decltype(packed)>::Scratch scratch;
  run_with_small_stack([&] { packed.forward(x, y, scratch, {.num_threads = 1}); });
  EXPECT_TRUE(y.array().isFinite().all());
}

// CTest runs this once more where OMP_STACKSIZE makes the stacks of OpenMP's threads small.
TYPED_TEST(SmallStack, IsEnoughForTheOtherWorkersOfACall) {
  Work<TypeParam> work(200, 2);
  work.step();
  EXPECT_TRUE(work.dx.array().isFinite().all());
}

}  // namespace
}  // namespace moe::small_stack_test
