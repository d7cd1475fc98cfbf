// SPDX-License-Identifier: Apache-2.0
// A child made by fork() has none of the threads that OpenMP keeps, and GCC's run-time waits for
// them for ever. A call of one thread needs none of them.
#include <gtest/gtest.h>

#include "moe/layers/packed_layer.hpp"
#include "moe/losses.hpp"
#include "support/layer_step.hpp"

#if defined(__SANITIZE_THREAD__)
#define MOE_MAY_FORK 0
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define MOE_MAY_FORK 0
#endif
#endif
#if !defined(MOE_MAY_FORK) && defined(__linux__)
#define MOE_MAY_FORK 1
#endif

#if MOE_MAY_FORK
#include <sys/wait.h>
#include <unistd.h>

namespace moe::fork_test {
namespace {

using testing::make_layer;
using testing::random_matrix;
using testing::run_step;
using testing::same_bits;
using testing::same_grads;

/// Whether f() is true in a child; false if the child does not end within 20 s.
template <class F>
bool holds_in_a_child(F&& f) {
  const pid_t child = fork();
  if (child == 0) {
    alarm(20);
    _exit(f() ? 0 : 1);
  }
  int status = 0;
  return child > 0 && waitpid(child, &status, 0) == child && WIFEXITED(status) &&
         WEXITSTATUS(status) == 0;
}

const MoEConfig config{
    .d_model = 64, .d_ff = 128, .num_experts = 4, .top_k = 2, .shared = {{.d_ff = 32}}};

TEST(Fork, AChildOfAProcessWithThreadsMayCallWithOneThread) {
  const MoELayer<float> layer = make_layer<float>(config, 1);
  const auto packed = pack<float>(layer);
  const Matrix<float> x = random_matrix<float>(64, 64, 2);
  const auto want = run_step(layer, x, {.num_threads = 2});  // OpenMP has threads now
  EXPECT_TRUE(holds_in_a_child([&] {
    const CallOptions one{.num_threads = 1};
    const auto step = run_step(layer, x, one);
    MoELayer<float>::Scratch scratch;
    PackedLayer<float>::Scratch packed_scratch;
    DenseFfn<float>::Scratch dense_scratch;
    Router<float>::Table table;
    Matrix<float> y = x, y_packed = x, y_dense = x;
    layer.forward(x, y, scratch, one);
    packed.forward(x, y_packed, packed_scratch, one);
    layer.shared()->forward(x, y_dense, dense_scratch, one);
    layer.router().route(x, one, table);
    return same_bits(step.y, want.y) && same_bits(step.dx, want.dx) &&
           same_grads(layer, step.grads, want.grads) && same_bits(y, want.y) &&
           same_bits(y_packed, want.y);
  }));
}

TEST(Fork, AChildMayTakeLossesOfALargeTableWithOneThread) {
  const MoELayer<float> layer = make_layer<float>(config, 1);
  MoELayer<float>::Tape tape;
  const Matrix<float> x = random_matrix<float>(50000, 64, 2);
  Matrix<float> y = x;
  layer.forward(x, y, tape, {.num_threads = 2});
  const auto losses = [&](int threads) {
    return load_balancing_loss(tape.routing, {}, threads) + z_loss(tape.routing, {}, threads) +
           importance_loss(tape.routing) + gshard_loss(tape.routing, {}, threads);
  };
  const float want = losses(2).value;
  EXPECT_TRUE(holds_in_a_child([&] { return std::abs(losses(1).value - want) <= 0.0f; }));
}

#ifdef _OPENMP
TEST(Fork, AChildThatSetsOpenMpToOneThreadMayMakeAndPackLayers) {
  const Matrix<float> x = random_matrix<float>(64, 64, 3);
  Matrix<float> want = x;
  MoELayer<float>::Scratch scratch;
  MoELayer<float>(config, 4).forward(x, want, scratch, {.num_threads = 2});
  EXPECT_TRUE(holds_in_a_child([&] {
    omp_set_num_threads(1);
    const auto packed = pack<float>(MoELayer<float>(config, 4));
    PackedLayer<float>::Scratch own;
    Matrix<float> y = x;
    packed.forward(x, y, own);
    return bool(same_bits(y, want));
  }));
}
#endif

}  // namespace
}  // namespace moe::fork_test
#endif
