// SPDX-License-Identifier: Apache-2.0
#include "moe/io/tensor_files.hpp"

#include "model_folder.hpp"

namespace moe::io::testing {
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

}  // namespace
}  // namespace moe::io::testing
