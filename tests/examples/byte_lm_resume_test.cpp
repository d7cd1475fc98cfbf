// SPDX-License-Identifier: Apache-2.0
// examples/byte_lm: a run that was stopped or killed and goes on from its checkpoint ends with the
// bits and the records of one that was left alone; another run's checkpoint is refused.
#include "../../examples/byte_lm/train.hpp"
#if __has_include(<CLI/CLI.hpp>)
#include "../../examples/byte_lm/options.hpp"
#endif
#include "../io/hard_times.hpp"
#include "../io/model_folder.hpp"

namespace byte_lm::byte_lm_resume_test {
namespace {

using LmRun = Run;  // ::testing::Test has one of its own
using moe::io::SafeTensors;
namespace fs = std::filesystem;

/// What a file is refused with; "" if it is not.
template <class F>
std::string fault_of(F&& f) {
  try {
    f();
  } catch (const moe::io::FormatError& error) {
    return error.what();
  }
  return "";
}

class ByteLmCheckpoint : public moe::io::testing::ModelFolder {
 protected:
  void SetUp() override {
    ModelFolder::SetUp();
    std::mt19937 random(1);
    for (const char first : {'a', 'n'}) {
      std::string text;
      for (int i = 0; i < 3000; ++i) {
        text += i % 50 == 49 ? '\n' : static_cast<char>(first + static_cast<int>(random() % 12));
      }
      std::ofstream(folder() / (std::string(1, first) + ".txt"), std::ios::binary) << text;
    }
    corpus_ = std::make_unique<Corpus>(std::vector<std::string>{folder().string()}, 4);
  }

  static ModelConfig config(Balance balance) {
    return {.context = 4,
            .embedding = 4,
            .blocks = 2,
            .feed_forward = {.d_model = 8,
                             .d_ff = 4,
                             .num_experts = 4,
                             .top_k = 2,
                             .selection_bias = balance == Balance::bias}};
  }
  // With one thread: a child has none of those that OpenMP keeps.
  static TrainOptions options(Balance balance) {
    return {.tokens = 32 * 90,
            .batch = 32,
            .warm_up = 10,
            .balance = balance,
            .evaluations = 9,
            .validation_tokens = 40,
            .test_tokens = 40,
            .save_every = 3,
            .threads = 1};
  }
  LmRun run(Balance balance, std::uint64_t seed = 1) const {
    return {*corpus_, config(balance), options(balance), seed};
  }
  static void finish(LmRun& run, const fs::path& path, std::vector<Json>& records) {
    run.train({.record = [&](const Json& record) { records.push_back(record); },
               .save = [&] { run.save(path); }});
  }

  /// All tensors of two checkpoints but those that have the time in them, and the records but for
  /// it.
  static void expect_same(const fs::path& a, const fs::path& b) {
    const SafeTensors first = SafeTensors::load(a), second = SafeTensors::load(b);
    ASSERT_EQ(first.tensors().size(), second.tensors().size());
    for (const auto& tensor : first.tensors()) {
      if (tensor.name != "seconds" && tensor.name != "records" &&
          tensor.name != "training_state.checksums") {
        EXPECT_TRUE(std::ranges::equal(tensor.data, second.at(tensor.name).data)) << tensor.name;
      }
    }
  }
  static std::string without_time(std::vector<Json> records) {
    std::string text;
    for (Json& record : records) {
      record.erase("seconds");
      text += record.dump() + '\n';
    }
    return text;
  }

  std::unique_ptr<Corpus> corpus_;
};

class ByteLmResumed : public ByteLmCheckpoint, public ::testing::WithParamInterface<Balance> {};

TEST_P(ByteLmResumed, GoesOnFromWhereItWasStopped) {
  std::vector<Json> whole_records, records;
  LmRun whole = run(GetParam());
  finish(whole, folder() / "whole", whole_records);
  const fs::path path = folder() / "resumed";
  for (const Index last : {1, 17, 30, 89, 90}) {
    LmRun part = run(GetParam());
    if (fs::exists(path)) {
      part.load(path);
      EXPECT_EQ(part.standing(), "goes on from step " + std::to_string(part.steps()) + " of 90");
    }
    records.clear();
    part.train({.stop = [&] { return part.steps() >= last; },
                .record = [&](const Json& record) { records.push_back(record); },
                .save = [&] { part.save(path); }});
    EXPECT_EQ(part.steps(), last);
    EXPECT_EQ(records.back()["complete"], last == 90);
  }
  EXPECT_EQ(records.size(), 10U);
  EXPECT_EQ(without_time(records), without_time(whole_records));
  expect_same(folder() / "whole", path);

  LmRun again = run(GetParam());  // one that is complete gives its records, and nothing else
  again.load(path);
  EXPECT_EQ(again.standing(), "is complete");
  std::vector<Json> once_more;
  finish(again, folder() / "none", once_more);
  EXPECT_EQ(once_more, records);
  EXPECT_FALSE(fs::exists(folder() / "none"));
}

#if !defined(_WIN32)
TEST_P(ByteLmResumed, GoesOnFromWhereItWasKilled) {
  const fs::path path = folder() / "killed";
  std::mt19937 moments(2);
  int kills = 0;
  const auto resume = [&](LmRun& made) {
    if (fs::exists(path)) {
      made.load(path);
    }
    return made.steps();
  };
  for (;; ++kills) {
    LmRun now = run(GetParam());  // made here: layers are filled by all threads
    if (resume(now) >= 84 || kills == 12) {
      break;
    }
    moe::io::testing::kill_after(
        [&] {
          std::vector<Json> records;
          finish(now, path, records);
        },
        [&, change = moe::io::testing::FileChange(path)] {
          EXPECT_TRUE(change.wait());
          std::this_thread::sleep_for(std::chrono::microseconds(moments() % 3000));
        });
  }
  EXPECT_GE(kills, 3);
  std::vector<Json> records, whole_records;
  LmRun last = run(GetParam()), whole = run(GetParam());
  resume(last);
  finish(last, path, records);
  finish(whole, folder() / "whole", whole_records);
  EXPECT_EQ(without_time(records), without_time(whole_records));
  expect_same(folder() / "whole", path);
}

TEST_F(ByteLmCheckpoint, StaysWholeWhereTheNextCannotBeWritten) {
  const fs::path path = folder() / "last";
  LmRun saved = run(Balance::bias);
  saved.save(path);
  const std::uintmax_t size = fs::file_size(path);
  {
    const moe::io::testing::FileSizeLimit limit(4000);
    std::vector<Json> records;
    const std::string message = fault_of([&] { finish(saved, path, records); });
    EXPECT_NE(message.find("cannot write"), std::string::npos) << message;
  }
  EXPECT_EQ(saved.steps(), 3);
  EXPECT_EQ(fs::file_size(path), size);
  LmRun again = run(Balance::bias);
  again.load(path);
  EXPECT_EQ(again.steps(), 0);
}
#endif

INSTANTIATE_TEST_SUITE_P(AuxAndBias, ByteLmResumed, ::testing::Values(Balance::aux, Balance::bias));

TEST_F(ByteLmCheckpoint, OfAnotherRunIsRefused) {
  const fs::path path = folder() / "last";
  run(Balance::bias).save(path);
  const auto message = [&](LmRun other) { return fault_of([&] { other.load(path); }); };
  EXPECT_NE(message(run(Balance::bias, 2)).find("\"seed\" is \"1\", expected \"2\""),
            std::string::npos);
  EXPECT_NE(message(run(Balance::aux)).find("\"--balance\" is "), std::string::npos);
  TrainOptions longer = options(Balance::bias);
  longer.long_factor = 2.0;
  EXPECT_NE(message(LmRun(*corpus_, config(Balance::bias), longer, 1))
                .find("\"--long-factor\" is \"1.0\", expected \"2.0\""),
            std::string::npos);
  fs::copy_file(folder() / "a.txt", folder() / "z.txt");
  const Corpus more({folder().string()}, 4);
  const std::string refused =
      message(LmRun(more, config(Balance::bias), options(Balance::bias), 1));
  EXPECT_NE(refused.find("\"text\" is "), std::string::npos) << refused;
  std::ofstream(path, std::ios::binary | std::ios::in) << "no checkpoint";
  EXPECT_NE(message(run(Balance::bias)).find("last"), std::string::npos);
}

#if __has_include(<CLI/CLI.hpp>)
TEST(ByteLmOptions, AreWhatSettingsAreNamedAfter) {
  CLI::App app;
  Options options;
  add_options(app, options);
  const Json settings = settings_of(options.model, options.train);
  for (const auto& [setting, value] : settings.items()) {
    const std::string named = options_of(setting, false);
    EXPECT_TRUE(named == setting || app.get_option_no_throw(named) != nullptr) << named;
  }
  std::istringstream several(options_of("d_ff", true));
  for (std::string word; several >> word;) {
    word.resize(word.size() - (word.ends_with(',') ? 1 : 0));
    EXPECT_TRUE(word == "or" || app.get_option_no_throw(word) != nullptr) << word;
  }
}
#endif

}  // namespace
}  // namespace byte_lm::byte_lm_resume_test
