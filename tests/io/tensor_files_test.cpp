// SPDX-License-Identifier: Apache-2.0
#include "moe/io/tensor_files.hpp"

#include "model_folder.hpp"

namespace moe::io::testing::tensor_files_test {
namespace {

class TensorFilesIn : public ModelFolder {
 protected:
  void write_index(std::string_view weight_map) const {
    write("model.safetensors.index.json",
          joined(R"({"metadata": {"total_size": 1}, "weight_map": )", weight_map, "}"));
  }
  fs::path index() const { return folder() / "model.safetensors.index.json"; }
  TensorFiles open() const { return TensorFiles::open(folder()); }
};

float first_of(const FileTensor& tensor) {
  float value = 0;
  std::memcpy(&value, tensor.view.data.data(), sizeof value);
  return value;
}

TEST_F(TensorFilesIn, AreThoseOfASingleFile) {
  const fs::path file =
      write("model.safetensors", {{"b", counted({2}, 5)}, {"a", counted({1}, 3)}});
  for (const fs::path& path : {folder(), file}) {
    TensorFiles files = TensorFiles::open(path);
    EXPECT_EQ(files.names(), (std::vector<std::string>{"a", "b"}));
    EXPECT_EQ(first_of(files.at("b")), 5);
    EXPECT_EQ(files.at("a").file, file.string());
    EXPECT_FALSE(files.contains("c"));
    expect_fault([&] { files.at("c"); }, file, "c", {"no tensor of this name"});
  }
}

TEST_F(TensorFilesIn, AreThoseOfShardsByTheirIndex) {
  const fs::path one = write("1.safetensors", {{"b", counted({1}, 7)}});
  const fs::path two = write("2.safetensors", {{"a", counted({1}, 8)}, {"c", counted({1}, 9)}});
  write_index(R"({"c": "2.safetensors", "b": "1.safetensors", "a": "2.safetensors"})");
  TensorFiles files = open();
  EXPECT_EQ(files.names(), (std::vector<std::string>{"a", "b", "c"}));
  EXPECT_EQ(first_of(files.at("a")), 8);
  EXPECT_EQ(first_of(files.at("b")), 7);
  EXPECT_EQ(first_of(files.at("c")), 9);
  EXPECT_EQ(files.at("b").file, one.string());
  EXPECT_EQ(files.at("c").file, two.string());
}

TEST_F(TensorFilesIn, OpenAShardWhenATensorOfItIsAskedFor) {
  write("1.safetensors", {{"a", counted({1}, 7)}});
  write_index(R"({"a": "1.safetensors", "b": "missing.safetensors"})");
  TensorFiles files = open();
  EXPECT_EQ(first_of(files.at("a")), 7);
  expect_fault([&] { files.at("b"); }, folder() / "missing.safetensors", "", {"cannot open"});
}

#if defined(__linux__)
/// Bytes of mapped files that are memory of this process.
Index mapped_bytes() {
  std::ifstream status("/proc/self/statm");
  Index whole = 0, resident = 0, of_files = 0;
  status >> whole >> resident >> of_files;
  return of_files * ::sysconf(_SC_PAGESIZE);
}

TEST_F(TensorFilesIn, AreNoLongerTheProcessesMemoryOnceReleased) {
  constexpr Index size = 4'000'000;
  write("model.safetensors", {{"a", counted({size})}});
  TensorFiles files = open();
  const std::span<const std::byte> data = files.at("a").view.data;
  const Index before = mapped_bytes();
  const std::vector<std::byte> copy(data.begin(), data.end());
  EXPECT_GE(mapped_bytes(), before + 3 * size);
  files.release_pages();
  EXPECT_LE(mapped_bytes(), before + size);
  EXPECT_TRUE(std::equal(data.begin(), data.end(), copy.begin()));
}
#endif

TEST_F(TensorFilesIn, RefuseATensorThatItsShardHasNot) {
  const fs::path file = write("1.safetensors", {{"a", counted({1})}});
  write_index(R"({"a": "1.safetensors", "b": "1.safetensors"})");
  TensorFiles files = open();
  for (int i = 0; i < 2; ++i) {  // once more: nothing is kept of a bad shard
    expect_fault([&] { files.at("a"); }, file, "b", {"no tensor of this name", "index.json"});
  }
}

TEST_F(TensorFilesIn, RefuseATensorInTwoShards) {
  write("1.safetensors", {{"a", counted({1})}});
  const fs::path file = write("2.safetensors", {{"a", counted({1})}, {"b", counted({1})}});
  write_index(R"({"a": "1.safetensors", "b": "2.safetensors"})");
  TensorFiles files = open();
  expect_fault([&] { files.at("b"); }, file, "a", {"1.safetensors", "expected in one shard"});
}

TEST_F(TensorFilesIn, RefuseATensorThatTheIndexHasNot) {
  const fs::path file = write("1.safetensors", {{"a", counted({1})}, {"b", counted({1})}});
  write_index(R"({"a": "1.safetensors"})");
  TensorFiles files = open();
  expect_fault([&] { files.at("a"); }, file, "b", {"does not have"});
}

TEST_F(TensorFilesIn, RefuseANameThatIsNoFileOfTheFolder) {
  for (const char* name : {"../x.safetensors", "/etc/passwd", "a/b", "a\\\\b", "C:x", "..", ".", "",
                           "a\\u0000b", "a\\nb"}) {
    write_index(joined(R"({"a": ")", name, "\"}"));
    expect_fault([&] { open(); }, index(), "a", {"expected the name of a file in the folder"});
  }
}

TEST_F(TensorFilesIn, RefuseAnIndexThatIsNone) {
  for (const char* text : {"{}", R"({"weight_map": 3})", R"({"weight_map": []})"}) {
    write("model.safetensors.index.json", text);
    expect_fault([&] { open(); }, index(), "", {"weight_map", "expected an object"});
  }
  write_index("{}");
  expect_fault([&] { open(); }, index(), "", {"no tensor"});
  write_index(R"({"a": 3})");
  expect_fault([&] { open(); }, index(), "a", {"weight_map: 3", "expected the name of a file"});
  write_index(R"({"a": {"b": "x"}})");
  expect_fault([&] { open(); }, index(), "a", {"an object"});
  write_index(R"({"a": "1", "a": "2"})");
  expect_fault([&] { open(); }, index(), "", {"\"weight_map.a\" appears twice"});
  write("model.safetensors.index.json", "{");
  expect_fault([&] { open(); }, index(), "", {"invalid JSON"});
}

TEST_F(TensorFilesIn, RefuseAFolderWithoutAModel) {
  expect_fault([&] { open(); }, folder(), "", {"no model.safetensors", "expected one"});
  expect_fault([&] { TensorFiles::open(folder() / "x"); }, folder() / "x", "", {"cannot open"});
}

#if !defined(_WIN32)
TEST_F(TensorFilesIn, RefuseAShardThatWasCutShortAfterItWasMapped) {
  const fs::path one = write("1.safetensors", {{"a", counted({1})}, {"b", counted({1000})}});
  write("2.safetensors", {{"c", counted({1})}});
  write_index(R"({"a": "1.safetensors", "b": "1.safetensors", "c": "2.safetensors"})");
  TensorFiles files = open();
  EXPECT_EQ(first_of(files.at("a")), 0);
  fs::resize_file(one, 1000);
  expect_fault([&] { files.at("b"); }, one, "b", {"byte 1000: end of file", "shrank"});
  EXPECT_EQ(first_of(files.at("c")), 0);
}

TEST_F(TensorFilesIn, RefuseAShardThatIsNoFile) {
  fs::create_symlink("circle", folder() / "circle");
  fs::create_directory(folder() / "folder");
  write("short", zeros(7));
  write_index(R"({"a": "circle", "b": "folder", "c": "short", "d": "missing"})");
  TensorFiles files = open();
  expect_fault([&] { files.at("a"); }, folder() / "circle", "", {"cannot open"});
  expect_fault([&] { files.at("b"); }, folder() / "folder", "", {"not a regular file"});
  expect_fault([&] { files.at("c"); }, folder() / "short", "", {"has 7 bytes"});
  expect_fault([&] { files.at("d"); }, folder() / "missing", "", {"cannot open"});
}
#endif

TEST_F(TensorFilesIn, MayBeVeryMany) {
  constexpr int count = 100'000;
  std::string map = "{\n", shard = "{";
  for (int i = 0; i < count; ++i) {
    const std::string name = joined("model.layers.", i / 1000, ".mlp.experts.", i % 1000, ".w");
    const char* const file = i % 2 == 0 ? "1.safetensors" : "2.safetensors";
    map += joined(i == 0 ? "" : ",\n", "\"", name, "\": \"", file, "\"");
    if (i % 2 == 0) {
      shard += joined(i == 0 ? "" : ",", u8_entry(name, static_cast<std::uint64_t>(i / 2),
                                                  static_cast<std::uint64_t>(i / 2 + 1)));
    }
  }
  write_index(map + "}");
  write("1.safetensors", file_of(shard + "}", zeros(count / 2)));
  TensorFiles files = open();
  EXPECT_EQ(files.names().size(), static_cast<std::size_t>(count));
  for (int i = 0; i < count; i += 2) {
    const std::string name = joined("model.layers.", i / 1000, ".mlp.experts.", i % 1000, ".w");
    ASSERT_EQ(files.at(name).view.name, name);
  }
  std::string deep = R"({"a": )";
  for (int i = 0; i < count; ++i) {
    deep += R"({"a": )";
  }
  write_index(deep);
  expect_fault([&] { open(); }, index(), "", {"more than 16 objects or lists"});
}

}  // namespace
}  // namespace moe::io::testing::tensor_files_test
