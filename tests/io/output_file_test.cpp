// SPDX-License-Identifier: Apache-2.0
#include "moe/io/output_file.hpp"

#include "hard_times.hpp"
#include "model_folder.hpp"
#include "moe/io/byte_source.hpp"

namespace moe::io::testing::output_file_test {
namespace {

using io::detail::OutputFile;

class OutputFileIn : public ModelFolder {
 protected:
  static std::string content(const fs::path& path) {
    const auto bytes = io::detail::InputFile(path).load();
    return {reinterpret_cast<const char*>(bytes.view.data()), bytes.view.size()};
  }
  static void put(OutputFile& file, std::string_view text) {
    file.write(std::as_bytes(std::span(text)));
  }
  std::size_t num_files() const {
    return static_cast<std::size_t>(
        std::distance(fs::directory_iterator(folder()), fs::directory_iterator()));
  }
};

TEST_F(OutputFileIn, IsThereOnlyWhenItIsFinished) {
  const fs::path path = write("a", "old");
  OutputFile file(path);
  put(file, "ne");
  put(file, "w");
  EXPECT_EQ(content(path), "old");
  file.finish();
  EXPECT_EQ(content(path), "new");
  EXPECT_EQ(num_files(), 1U);
}

TEST_F(OutputFileIn, LeavesNothingBehindUnfinished) {
  const fs::path path = write("a", "old");
  { put(*std::make_unique<OutputFile>(path), "new"); }
  EXPECT_EQ(content(path), "old");
  EXPECT_EQ(num_files(), 1U);
}

TEST_F(OutputFileIn, OfTwoWritersTheLastToFinishRemains) {
  const fs::path path = folder() / "a";
  OutputFile first(path), second(path);
  put(first, "first");
  put(second, "second");
  second.finish();
  first.finish();
  EXPECT_EQ(content(path), "first");
  EXPECT_EQ(num_files(), 1U);
}

TEST_F(OutputFileIn, RefusesAPathWhereNoFileCanBe) {
  const fs::path missing = folder() / "none" / "a";
  expect_fault([&] { OutputFile file(missing); }, missing, "", {"cannot make"});
  const fs::path taken = folder() / "taken";
  fs::create_directories(taken / "x");
  expect_fault(
      [&] {
        OutputFile file(taken);
        file.finish();
      },
      taken, "", {"cannot rename to"});
  EXPECT_EQ(num_files(), 1U);
}

TEST_F(OutputFileIn, IsNotStoppedByWhatKilledWritersLeftBehind) {
  const fs::path path = folder() / "a";
  for (int i = 0; i < 200; ++i) {
    write(joined("a.part", i), "left behind");
  }
  OutputFile file(path);
  put(file, "new");
  file.finish();
  EXPECT_EQ(content(path), "new");
}

TEST_F(OutputFileIn, RefusesAFolderThatIsAFile) {
  const fs::path path = write("a", "old") / "b";
  expect_fault([&] { OutputFile file(path); }, path, "", {"cannot make"});
  EXPECT_EQ(num_files(), 1U);
}

#if !defined(_WIN32)
TEST_F(OutputFileIn, KeepsTheOldFileWhenThereIsNoRoom) {
  const fs::path path = write("a", "old");
  const std::string text(20000, 'x');
  {
    const FileSizeLimit limit(10000);
    expect_fault(
        [&] {
          OutputFile file(path);
          put(file, text);
        },
        path, "", {"cannot write"});
  }
  EXPECT_EQ(content(path), "old");
  EXPECT_EQ(num_files(), 1U);
}
#endif

}  // namespace
}  // namespace moe::io::testing::output_file_test
