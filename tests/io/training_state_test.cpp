// SPDX-License-Identifier: Apache-2.0
// A run that was saved and read goes on with the bits of one that never stopped; a file that is not
// its own, or not whole, is refused and changes nothing.
#include "moe/io/training_state.hpp"

#include <functional>
#include <limits>
#include <map>

#include "hard_times.hpp"
#include "model_folder.hpp"
#include "support/throws.hpp"
#include "training_run.hpp"

namespace moe::io::testing::training_state_test {
namespace {

template <class Run>
class Resumed : public ModelFolder {};

using Runs = ::testing::Types<TrainingRun<float>, TrainingRun<float, Sgd>, TrainingRun<bf16>,
                              TrainingRun<bf16, Sgd>, TrainingRun<double>>;
TYPED_TEST_SUITE(Resumed, Runs);

TYPED_TEST(Resumed, HasTheBitsOfARunThatNeverStopped) {
  const fs::path path = this->folder() / "last.safetensors";
  TypeParam whole, first;
  whole.step_to(12);
  first.step_to(5);
  first.save(path);
  TypeParam second;
  second.load(path);
  EXPECT_TRUE(same_run(second, first));
  second.step_to(9);
  second.save(path);
  TypeParam third;
  third.step_to(2);  // what it did before is forgotten
  third.load(path);
  third.step_to(12, 2);
  EXPECT_TRUE(same_run(third, whole));
  EXPECT_GT(whole.layer.router().params().selection_bias.norm(), 0.0);
}

class TrainingStates : public ModelFolder {
 protected:
  using Run = TrainingRun<float>;

  /// Describes a run as `run` does, with more.
  template <class Describe>
  static auto with(Run& run, Describe&& describe) {
    return [&run, describe](TrainingState& state) {
      run.description()(state);
      describe(state);
    };
  }
  fs::path saved(Run& run) const {
    run.step_to(3);
    const fs::path path = folder() / "last.safetensors";
    run.save(path);
    return path;
  }
  static FileBytes content(const fs::path& path) {
    const auto bytes = io::detail::InputFile(path).load();
    return {bytes.view.begin(), bytes.view.end()};
  }
  std::size_t num_files() const {
    return static_cast<std::size_t>(
        std::distance(fs::directory_iterator(folder()), fs::directory_iterator()));
  }
};

TEST_F(TrainingStates, HoldParametersUnderTheNamesOfTheWalk) {
  Run run;
  const fs::path path = saved(run);
  const SafeTensors file = SafeTensors::map(path);
  const auto read = [&](const std::string& name, Index rows, Index cols) {
    return read_matrix<float>(file, name, rows, cols);
  };
  EXPECT_EQ(read("scale", 1, 8), run.scale);
  EXPECT_EQ(read("layers.0.experts.3.up", 12, 8), run.layer.experts()[3].params().up);
  EXPECT_EQ(read_matrix<Index>(file, "optimiser.steps", 1, 1)(0, 0), 3);
  EXPECT_EQ(file.metadata().at("optimiser.rule"), "AdamW");
  run.optimiser.for_each_state([&](const std::string& name, const auto& state) {
    EXPECT_EQ(read("optimiser." + name, state.rows(), state.cols()), state) << name;
  });
}

TEST_F(TrainingStates, HoldMatricesAndNumbersOfEveryType) {
  const fs::path path = folder() / "a.safetensors";
  struct All {
    std::int8_t i8 = 0;
    std::uint16_t u16 = 0;
    std::int32_t i32 = 0;
    std::uint64_t u64 = 0;
    float f32 = 0.0F;
    Matrix<double> f64 = Matrix<double>::Zero(2, 3);
    Eigen::MatrixXf column_major = Eigen::MatrixXf::Zero(2, 3);
    Eigen::VectorXi vector = Eigen::VectorXi::Zero(4);
    Matrix<Eigen::half> empty = Matrix<Eigen::half>(0, 3);

    void describe(TrainingState& state) {
      state.add("i8", i8);
      state.add("u16", u16);
      state.add("i32", i32);
      state.add("u64", u64);
      state.add("f32", f32);
      state.add("f64", f64);
      state.add("column_major", column_major);
      state.add("vector", vector);
      state.add("empty", empty);
    }
  };
  All all{.i8 = -3, .u16 = 60000, .i32 = -70000, .u64 = ~std::uint64_t{0}, .f32 = 0.1F};
  all.f64 << 1, 2, 3, 4, 5, 6;
  all.column_major << 1, 2, 3, 4, 5, 6;
  all.vector << 1, 2, 3, 4;
  save_training_state(path, [&](TrainingState& state) { all.describe(state); });
  All read;
  load_training_state(path, [&](TrainingState& state) { read.describe(state); });
  EXPECT_EQ(read.i8, -3);
  EXPECT_EQ(read.u16, 60000);
  EXPECT_EQ(read.i32, -70000);
  EXPECT_EQ(read.u64, ~std::uint64_t{0});
  EXPECT_EQ(read.f32, 0.1F);
  EXPECT_EQ(read.f64, all.f64);
  EXPECT_EQ(read.column_major, all.column_major);
  EXPECT_EQ(read.vector, all.vector);
  const SafeTensors file = SafeTensors::map(path);
  EXPECT_EQ(read_matrix<float>(file, "column_major", 3, 2), all.column_major.transpose());
  EXPECT_EQ(file.at("i8").dtype, DType::I8);
  EXPECT_EQ(file.at("u16").dtype, DType::U16);
  EXPECT_EQ(file.at("i32").dtype, DType::I32);
  EXPECT_EQ(file.at("u64").dtype, DType::U64);
}

TEST_F(TrainingStates, OfAnotherRunAreRefusedAndChangeNothing) {
  Run run;
  const fs::path path = saved(run);
  Matrix<float> more = Matrix<float>::Zero(2, 2);
  double loss = 0.0;
  const auto refuse = [&](auto&& describe, std::string_view tensor,
                          std::initializer_list<std::string_view> facts) {
    Run other, untouched;
    expect_fault([&] { load_training_state(path, with(other, describe)); }, path, tensor, facts);
    EXPECT_TRUE(same_run(other, untouched));
  };
  refuse([&](TrainingState& state) { state.add("more", more); }, "more",
         {"no tensor of this name, expected F32 [2, 2]"});
  refuse([](TrainingState& state) { state.expect("data", "b"); }, "",
         {"__metadata__: \"data\" is not there, expected \"b\""});
  const auto refuse_saved = [&](auto&& saved_with, auto&& read_with, std::string_view tensor,
                                std::initializer_list<std::string_view> facts) {
    save_training_state(path, with(run, saved_with));
    refuse(read_with, tensor, facts);
  };
  refuse_saved([&](TrainingState& state) { state.add("more", more); }, [](TrainingState&) {},
               "more", {"F32 [2, 2], expected no tensor of this name"});
  refuse_saved([&](TrainingState& state) { state.add("more", loss); },
               [&](TrainingState& state) { state.add("more", more); }, "more",
               {"F64 [], expected F32 [2, 2]"});
  refuse_saved([](TrainingState& state) { state.expect("data", "a"); },
               [](TrainingState& state) { state.expect("data", "b"); }, "",
               {"__metadata__: \"data\" is \"a\", expected \"b\""});
  refuse_saved([](TrainingState& state) { state.expect("data", "a"); }, [](TrainingState&) {}, "",
               {"__metadata__: \"data\" is \"a\", expected not there"});
}

TEST_F(TrainingStates, OfAnotherOptimiserAreRefused) {
  Run run;
  const fs::path path = saved(run);
  TrainingRun<float, Sgd> other, untouched;
  expect_fault([&] { other.load(path); }, path, "",
               {"__metadata__: \"optimiser.rule\" is \"AdamW\", expected \"Sgd\""});
  EXPECT_TRUE(same_run(other, untouched));
}

TEST_F(TrainingStates, OfAnotherElementTypeAreRefused) {
  Run run;
  const fs::path path = saved(run);
  TrainingRun<bf16> other, untouched;
  expect_fault([&] { other.load(path); }, path, "layers.0.experts.0.down",
               {"F32 [8, 12], expected BF16 [8, 12]"});
  EXPECT_TRUE(same_run(other, untouched));
}

TEST_F(TrainingStates, OfAFileThatIsNoneAreRefused) {
  Run run;
  const fs::path path = write("a.safetensors", NewTensors{{"scale", counted({1, 8})}});
  expect_fault([&] { run.load(path); }, path, "",
               {"__metadata__: \"format\" is not there, expected \"pt\""});
  const fs::path missing = folder() / "none";
  expect_fault([&] { run.load(missing); }, missing, "", {"cannot open"});
}

TEST_F(TrainingStates, OfAGeneratorMustBeReadable) {
  const fs::path path = folder() / "a.safetensors";
  Matrix<std::uint8_t> text(1, 3);
  text << 'a', 'b', 'c';
  Eigen::Matrix<std::uint8_t, 3, 1> column = text.transpose();
  save_training_state(path, [&](TrainingState& state) { state.add("generator", column); });
  std::mt19937 generator(3);
  expect_fault(
      [&] {
        load_training_state(path, [&](TrainingState& state) { state.add("generator", generator); });
      },
      path, "generator", {"U8 [1, 3], expected U8 of any length"});
  EXPECT_EQ(generator, std::mt19937(3));
  std::minstd_rand small(3);
  std::mt19937 large(4);
  save_training_state(path, [&](TrainingState& state) { state.add("generator", large); });
  expect_fault(
      [&] {
        load_training_state(path, [&](TrainingState& state) { state.add("generator", small); });
      },
      path, "generator", {"\", expected a state of the generator"});
  EXPECT_EQ(small, std::minstd_rand(3));
}

TEST_F(TrainingStates, ThatAreCutShortAreRefusedAndChangeNothing) {
  Run run, other, untouched;
  const fs::path path = saved(run);
  const FileBytes whole = content(path);
  for (std::size_t size = 0; size < whole.size(); size += 1 + size / 3) {
    const fs::path cut =
        write("cut", FileBytes(whole.begin(), whole.begin() + std::ptrdiff_t(size)));
    EXPECT_THROW(other.load(cut), FormatError) << size;
  }
  EXPECT_TRUE(same_run(other, untouched));
}

// Data, header and texts alike.
TEST_F(TrainingStates, WithAnyByteChangedAreRefused) {
  struct Small {
    Matrix<float> value = Matrix<float>::Constant(1, 3, 0.5F), gradient = value;
    AdamW<float> adam;
    std::minstd_rand generator{5};

    auto description() {
      return [this](TrainingState& state) {
        state.add("adam", adam, [&](auto&& visit) { visit("value", value, gradient); });
        state.add("generator", generator);
      };
    }
    bool operator==(const Small& other) const {
      return value == other.value && generator == other.generator &&
             adam.steps() == other.adam.steps();
    }
  };
  Small run;
  run.adam.step([&](auto&& visit) { visit("value", run.value, run.gradient); }, {.rate = 0.1});
  run.generator();
  const fs::path path = folder() / "a.safetensors";
  save_training_state(path, run.description());
  const FileBytes whole = content(path);
  Small other;
  const Small untouched;
  for (std::size_t i = 0; i < whole.size(); ++i) {
    for (const unsigned flip : {1U, 0x80U, 0xFFU}) {
      FileBytes bytes = whole;
      bytes[i] ^= static_cast<std::byte>(flip);
      const fs::path changed = write("b.safetensors", bytes);
      try {
        load_training_state(changed, other.description());
        ADD_FAILURE() << "byte " << i << " may be another";
      } catch (const FormatError&) {
        EXPECT_TRUE(other == untouched) << "byte " << i;
      }
    }
  }
}

TEST_F(TrainingStates, WithDataThatAreNotAsTheyWereWrittenAreRefused) {
  Run run, other, untouched;
  const fs::path path = saved(run);
  const std::uint64_t at = SafeTensors::map(path).at("layers.0.experts.2.up").file_offset;
  FileBytes bytes = content(path);
  bytes[at + 17] ^= std::byte{4};
  write("last.safetensors", bytes);
  expect_fault([&] { other.load(path); }, path, "layers.0.experts.2.up",
               {"its data have the checksum ", ", expected ", " as they were written"});
  EXPECT_TRUE(same_run(other, untouched));
}

TEST_F(TrainingStates, WithStepsThatCouldNotBeCountedUpFromAreRefused) {
  Matrix<float> value = Matrix<float>::Constant(1, 3, 0.5F), zeros = Matrix<float>::Zero(1, 3);
  const fs::path path = folder() / "a.safetensors";
  AdamW<float> adam;
  for (Index steps : {Index{-1}, std::numeric_limits<Index>::max()}) {
    save_training_state(path, [&](TrainingState& state) {
      state.add("value", zeros);
      state.add("adam.value.moment.0", zeros);
      state.add("adam.value.moment.1", zeros);
      state.add("adam.steps", steps);
      state.expect("adam.rule", "AdamW");
    });
    const auto load = [&] {
      load_training_state(path, [&](TrainingState& state) {
        state.add("adam", adam, [&](auto&& visit) { visit("value", value, zeros); });
      });
    };
    expect_fault(load, path, "adam.steps", {"steps = " + std::to_string(steps)});
    EXPECT_EQ(adam.steps(), 0);
    EXPECT_EQ(value(0, 0), 0.5F);
  }
}

TEST_F(TrainingStates, RefuseANameTwice) {
  double a = 0.0;
  const auto message = [&](auto&& describe) {
    return moe::testing::message_of([&] { save_training_state(folder() / "a", describe); });
  };
  EXPECT_EQ(message([&](TrainingState& state) {
              state.add("a", a);
              state.add("a", a);
            }),
            "training state: a twice, expected once");
  EXPECT_EQ(message([](TrainingState& state) {
              state.expect("a", "1");
              state.expect("a", "1");
            }),
            "training state: a twice, expected once");
  EXPECT_EQ(num_files(), 0U);
}

TEST_F(TrainingStates, LeaveTheLastOneWholeWhereTheNextCannotBeWritten) {
  Run run, before;
  const fs::path path = saved(run);
  before.step_to(3);
  run.step_to(4);
#if !defined(_WIN32)
  {
    const FileSizeLimit limit(4000);
    expect_fault([&] { run.save(path); }, path, "", {"cannot write"});
  }
#endif
  const fs::path missing = folder() / "none" / "last.safetensors";
  expect_fault([&] { run.save(missing); }, missing, "", {"cannot make"});
  Run read;
  read.load(path);
  EXPECT_TRUE(same_run(read, before));
  EXPECT_EQ(num_files(), 1U);
}

TEST_F(TrainingStates, RemoveWhatKilledWritersLeftBehind) {
  write("last.safetensors.part12", "left behind");
  write("last.safetensors.part", "the user's own");
  write("other.safetensors.part12", "the user's own");
  write("last.safetensors.part1.txt", "the user's own");
  Run run;
  saved(run);
  EXPECT_EQ(num_files(), 4U);
  EXPECT_FALSE(fs::exists(folder() / "last.safetensors.part12"));
}

}  // namespace
}  // namespace moe::io::testing::training_state_test
