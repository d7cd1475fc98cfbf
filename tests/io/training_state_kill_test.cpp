// SPDX-License-Identifier: Apache-2.0
// A run that is killed again and again while it trains and saves, and goes on from its file, ends
// with the bits of one that was left alone.
#include "moe/io/training_state.hpp"

#include "hard_times.hpp"
#include "model_folder.hpp"
#include "training_run.hpp"

#if !defined(_WIN32)
namespace moe::io::testing::training_state_kill_test {
namespace {

template <class Run>
class Killed : public ModelFolder {};

using Runs = ::testing::Types<TrainingRun<float>, TrainingRun<float, Sgd>, TrainingRun<bf16>>;
TYPED_TEST_SUITE(Killed, Runs);

// All of it with one thread: a child has none of those that OpenMP keeps.
TYPED_TEST(Killed, GoesOnAsIfItHadNotBeen) {
  constexpr Index all_steps = 1000;
  constexpr int kills = 15;
  const fs::path path = this->folder() / "last.safetensors";
  const auto resume = [&](TypeParam& run) {
    if (fs::exists(path)) {
      run.load(path);
    }
  };
  std::mt19937 moments(1);
  for (int kill = 0; kill < kills; ++kill) {
    TypeParam before, after;
    resume(before);
    kill_after(
        [&] {
          for (;;) {
            before.step_to((std::min)(before.steps + 1, all_steps));
            before.save(path);
          }
        },
        [&, change = FileChange(path)] {
          EXPECT_TRUE(change.wait());
          std::this_thread::sleep_for(std::chrono::microseconds(moments() % 3000));
        });
    resume(after);
    EXPECT_GE(after.steps, (std::min)(before.steps + 1, all_steps));
  }
  TypeParam whole, resumed;
  resume(resumed);
  resumed.step_to(all_steps);
  whole.step_to(all_steps);
  EXPECT_TRUE(same_run(resumed, whole));
  resumed.save(path);
  EXPECT_EQ(std::distance(fs::directory_iterator(this->folder()), fs::directory_iterator()), 1);
}

}  // namespace
}  // namespace moe::io::testing::training_state_kill_test
#endif
