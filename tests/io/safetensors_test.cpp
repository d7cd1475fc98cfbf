// SPDX-License-Identifier: Apache-2.0
// SafeTensors as users hold it: the sources of its bytes, and its lifetime.
#include "moe/io/safetensors.hpp"

#include <filesystem>
#include <fstream>
#include <string>

#include "safetensors_bytes.hpp"

#if defined(_WIN32)
#include <process.h>
#else
#include <sys/stat.h>
#include <unistd.h>
#endif

namespace moe::io::testing::safetensors_test {
namespace {

namespace fs = std::filesystem;

/// A directory of the test's own, gone afterwards.
class SafeTensorsFile : public ::testing::Test {
 protected:
  void SetUp() override {
    const auto* const info = ::testing::UnitTest::GetInstance()->current_test_info();
    directory_ =
        fs::path(::testing::TempDir()) / joined("moe_safetensors_", info->name(), "_", unique());
    fs::create_directories(directory_);
  }
  void TearDown() override { fs::remove_all(directory_); }

  fs::path write(const std::string& name, const FileBytes& bytes) const {
    fs::path path = directory_ / name;
    std::ofstream(path, std::ios::binary)
        .write(reinterpret_cast<const char*>(bytes.data()),
               static_cast<std::streamsize>(bytes.size()));
    return path;
  }

  void expect_refused_file(const fs::path& path, std::string_view fact) const {
    for (const auto open : {&SafeTensors::map, &SafeTensors::load}) {
      try {
        open(path, {});
        ADD_FAILURE() << path << " was accepted";
      } catch (const FormatError& error) {
        expect_message(error, path.string(), {fact});
      }
    }
  }

  fs::path directory_;

 private:
  static long unique() {
#if defined(_WIN32)
    return ::_getpid();
#else
    return ::getpid();
#endif
  }
};

// Two tensors and metadata; `padding` spaces move the data to any alignment.
FileBytes small_file(std::size_t padding = 0) {
  FileBytes data = bytes_of(std::vector<double>{1.5, -2.25});
  const FileBytes floats = bytes_of(std::vector<float>{1, 2, 3, 4, 5, 6});
  data.insert(data.end(), floats.begin(), floats.end());
  return file_of(R"({"__metadata__":{"format":"pt"},)"
                 R"("d":{"dtype":"F64","shape":[2],"data_offsets":[0,16]},)"
                 R"("f":{"dtype":"F32","shape":[2,3],"data_offsets":[16,40]}})" +
                     std::string(padding, ' '),
                 data);
}

TEST_F(SafeTensorsFile, IsTheSameFromEverySource) {
  const FileBytes bytes = small_file();
  const fs::path path = write("model.safetensors", bytes);
  for (const SafeTensors& file :
       {SafeTensors::map(path), SafeTensors::load(path), SafeTensors::from_bytes(bytes)}) {
    ASSERT_EQ(file.tensors().size(), 2U);
    EXPECT_EQ(file.metadata().at("format"), "pt");
    EXPECT_EQ(file.at("f").dtype, DType::F32);
    EXPECT_EQ(file.at("f").shape, (std::vector<Index>{2, 3}));
    EXPECT_EQ(file.at("f").file_offset, bytes.size() - 24);
    EXPECT_EQ(std::memcmp(file.at("f").data.data(), bytes.data() + bytes.size() - 24, 24), 0);
    EXPECT_EQ(read_matrix<float>(file, "f", 2, 3)(1, 0), 4.0F);
    EXPECT_EQ(read_matrix<double>(file, "d", 1, 2)(0, 1), -2.25);
  }
  EXPECT_EQ(SafeTensors::load(path).file(), path.string());
  EXPECT_EQ(SafeTensors::from_bytes(bytes).file(), "<memory>");
}

TEST_F(SafeTensorsFile, NamesTheFileAndTheTensorThatIsNotThere) {
  const fs::path path = write("model.safetensors", small_file());
  const SafeTensors file = SafeTensors::map(path);
  try {
    file.at("gate.weight");
    FAIL();
  } catch (const FormatError& error) {
    expect_message(error, path.string(), {"tensor \"gate.weight\"", "no tensor of this name"});
    EXPECT_EQ(error.tensor(), "gate.weight");
  }
}

TEST_F(SafeTensorsFile, RefusesWhatIsNoFile) {
  expect_refused_file(directory_ / "missing.safetensors", "cannot open");
  expect_refused_file(directory_, "not a regular file");
  expect_refused_file(write("empty.safetensors", {}), "has 0 bytes, expected at least 8");
  expect_refused_file(write("short.safetensors", zeros(7)), "has 7 bytes");
  expect_refused_file(write("length.safetensors", file_of("{}", {}, 3)), "header length 3");
}

TEST_F(SafeTensorsFile, RefusesATruncatedFile) {
  FileBytes bytes = small_file();
  bytes.pop_back();
  expect_refused_file(write("model.safetensors", bytes), "ends after 39 bytes of data");
}

TEST_F(SafeTensorsFile, LoadedBytesOutliveTheFile) {
  const fs::path path = write("model.safetensors", small_file());
  const SafeTensors loaded = SafeTensors::load(path);
  fs::resize_file(path, 8);
  EXPECT_EQ(read_matrix<float>(loaded, "f", 2, 3)(1, 2), 6.0F);
}

#if defined(_WIN32)
TEST_F(SafeTensorsFile, RefusesDevices) { expect_refused_file("NUL", "not a regular file"); }
#else
TEST_F(SafeTensorsFile, RefusesFifosAndDevicesWithoutWaiting) {
  const fs::path fifo = directory_ / "fifo";
  ASSERT_EQ(::mkfifo(fifo.c_str(), 0600), 0);
  expect_refused_file(fifo, "not a regular file");
  expect_refused_file("/dev/zero", "not a regular file");
  expect_refused_file("/dev/null", "not a regular file");
}

TEST_F(SafeTensorsFile, RefusesTheTensorsOfAMappedFileThatWasCutShort) {
  const FileBytes bytes = small_file();
  const fs::path path = write("model.safetensors", bytes);
  const SafeTensors file = SafeTensors::map(path);
  EXPECT_EQ(read_matrix<float>(file, "f", 2, 3)(1, 2), 6.0F);
  for (const std::size_t size : {bytes.size() - 1, std::size_t{8}, std::size_t{0}}) {
    fs::resize_file(path, size);
    try {
      read_matrix<float>(file, "f", 2, 3);
      ADD_FAILURE() << size;
    } catch (const FormatError& error) {
      expect_message(error, path.string(),
                     {joined("tensor \"f\", byte ", size, ": end of file"),
                      joined("expected ", bytes.size(), " bytes"), "shrank"});
    }
  }
  write("model.safetensors", bytes);  // whole again
  EXPECT_EQ(read_matrix<float>(file, "f", 2, 3)(1, 2), 6.0F);
}

TEST_F(SafeTensorsFile, FollowsLinksButNotInCircles) {
  write("model.safetensors", small_file());
  fs::create_symlink("model.safetensors", directory_ / "link");
  EXPECT_NO_THROW(SafeTensors::map(directory_ / "link"));
  fs::create_symlink("circle", directory_ / "circle");
  expect_refused_file(directory_ / "circle", "cannot open");
}

TEST_F(SafeTensorsFile, AHugeFileOfSomethingElseCostsNothing) {
  const fs::path path = write("model.safetensors", file_of("{}", {}, ~std::uint64_t{0}));
  fs::resize_file(path, std::uintmax_t{1} << 40);  // sparse
  expect_refused_file(path, "header length");
}
#endif

TEST_F(SafeTensorsFile, ReadsDataAtAnyAlignment) {
  for (std::size_t padding = 0; padding < 8; ++padding) {
    const fs::path path = write("model.safetensors", small_file(padding));
    const SafeTensors file = SafeTensors::map(path);
    EXPECT_EQ(read_matrix<double>(file, "d", 1, 2)(0, 0), 1.5);
    EXPECT_EQ(read_matrix<double>(file, "f", 2, 3)(0, 2), 3.0);
    EXPECT_EQ(read_matrix<float>(file, "f", 2, 3)(0, 2), 3.0F);
  }
}

TEST(SafeTensors, ViewsSurviveAMoveAndTheSourceIsEmpty) {
  static_assert(!std::is_copy_constructible_v<SafeTensors>);
  static_assert(std::is_nothrow_move_constructible_v<SafeTensors>);
  SafeTensors source = SafeTensors::from_bytes(small_file());
  const TensorView* const view = &source.at("f");
  const std::span<const std::byte> data = view->data;
  SafeTensors target = std::move(source);
  EXPECT_EQ(&target.at("f"), view);
  EXPECT_EQ(target.at("f").data.data(), data.data());
  // What is left is not unspecified here, but empty. NOLINTBEGIN(bugprone-use-after-move)
  EXPECT_TRUE(source.tensors().empty());
  EXPECT_TRUE(source.metadata().empty());
  EXPECT_FALSE(source.contains("f"));
  EXPECT_THROW(source.at("f"), FormatError);
  source = std::move(target);
  EXPECT_EQ(read_matrix<float>(source, "f", 2, 3)(1, 2), 6.0F);
  EXPECT_FALSE(target.contains("f"));
  // NOLINTEND(bugprone-use-after-move)
}

}  // namespace
}  // namespace moe::io::testing::safetensors_test
