// SPDX-License-Identifier: Apache-2.0
// A model of shards that takes the place of another: at once or not at all.
#include "moe/io/write_model.hpp"

#include "hard_times.hpp"
#include "model_folder.hpp"
#include "moe/io/tensor_files.hpp"

namespace moe::io::testing::write_model_test {
namespace {

using io::detail::cut_shards;
using io::detail::write_model;

class WriteModel : public ModelFolder {
 protected:
  static constexpr int num_tensors = 4;
  static constexpr Index size = 1000;

  /// Every byte is `value`; `then` is called before each tensor.
  static std::vector<TensorToWrite> model_of(
      int value, std::function<void()> then = [] {}) {
    std::vector<TensorToWrite> tensors;
    for (int i = 0; i < num_tensors; ++i) {
      tensors.push_back(
          {joined("t", i), DType::U8, {size}, [value, then](std::span<std::byte> data) {
             then();
             std::fill(data.begin(), data.end(), static_cast<std::byte>(value));
           }});
    }
    return tensors;
  }
  void write_shards_of(std::vector<TensorToWrite> tensors, std::uint64_t tensors_each = 1) const {
    write_model(cut_shards(std::move(tensors), tensors_each * size), folder());
  }
  /// What every byte of the model is, or -1 if they are not the same.
  int value() const {
    TensorFiles files = TensorFiles::open(folder());
    EXPECT_EQ(files.names().size(), static_cast<std::size_t>(num_tensors));
    const auto first = static_cast<int>(files.at("t0").view.data[0]);
    for (const std::string& name : files.names()) {
      for (const std::byte byte : files.at(name).view.data) {
        if (static_cast<int>(byte) != first) {
          return -1;
        }
      }
    }
    return first;
  }
  std::set<std::string> files() const {
    std::set<std::string> names;
    for (const auto& entry : fs::directory_iterator(folder())) {
      names.insert(entry.path().filename().string());
    }
    return names;
  }
};

TEST_F(WriteModel, HasTheNamesOfTheHub) {
  write_shards_of(model_of(1), 2);
  EXPECT_EQ(files(), (std::set<std::string>{"model-00001-of-00002.safetensors",
                                            "model-00002-of-00002.safetensors",
                                            "model.safetensors.index.json"}));
  EXPECT_EQ(value(), 1);
}

TEST_F(WriteModel, IsTheOneBeforeUntilAllOfItIsThere) {
  write_shards_of(model_of(1));
  int looked = 0;
  for (int model = 2; model < 5; ++model) {
    write_shards_of(model_of(model, [&] {
      ++looked;
      EXPECT_EQ(value(), model - 1);
    }));
    EXPECT_EQ(value(), model);
    EXPECT_EQ(files().size(), 5U) << "four shards and an index";
  }
  EXPECT_EQ(looked, 12);
  write_shards_of(model_of(5), 2);
  EXPECT_EQ(files().size(), 3U);
}

TEST_F(WriteModel, LeavesTheOneBeforeAndNoMoreIfAShardFails) {
  write_shards_of(model_of(1));
  const std::set<std::string> before = files();
  int left = 3;
  EXPECT_THROW(write_shards_of(model_of(2,
                                        [&] {
                                          if (--left == 0) {
                                            throw std::bad_alloc();
                                          }
                                        })),
               std::bad_alloc);
  EXPECT_EQ(files(), before);
  EXPECT_EQ(value(), 1);
}

TEST_F(WriteModel, RemovesNoFilesButShards) {
  write("notes.txt", "mine");
  write("model-notes.txt", "mine");
  write("others.safetensors", "mine");
  write("model.safetensors.index.json",
        R"({"weight_map": {"a": "notes.txt", "b": "model-notes.txt", "c": "others.safetensors",
            "d": "model-/../notes.safetensors", "e": "model-00001-of-00004.safetensors"}})");
  write_shards_of(model_of(1));
  EXPECT_EQ(value(), 1);
  EXPECT_EQ(files().size(), 8U);
  write("model.safetensors.index.json", "{");  // of a bad index none
  write_shards_of(model_of(2));
  EXPECT_EQ(value(), 2);
  EXPECT_EQ(files().size(), 12U);
}

#if !defined(_WIN32)
TEST_F(WriteModel, IsOneOrTheOtherWheneverTheWriterIsKilled) {
  write_shards_of(model_of(0));
  std::mt19937 random(1);
  for (int round = 1; round < 60; ++round) {
    kill_while(
        [&, next = round]() mutable {
          write_shards_of(model_of(next % 100));
          next += 60;
        },
        std::chrono::microseconds(random() % 20'000));
    ASSERT_NE(value(), -1) << round;
  }
}
#endif

}  // namespace
}  // namespace moe::io::testing::write_model_test
