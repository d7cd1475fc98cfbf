// SPDX-License-Identifier: Apache-2.0
#include "moe/io/write_safetensors.hpp"

#include "model_folder.hpp"
#include "moe/io/safetensors.hpp"
#include "support/throws.hpp"

namespace moe::io::testing::write_safetensors_test {
namespace {

TensorToWrite tensor(const std::string& name, DType dtype, std::vector<Index> shape, char fill) {
  return {name, dtype, std::move(shape), [fill](std::span<std::byte> data) {
            std::fill(data.begin(), data.end(), static_cast<std::byte>(fill));
          }};
}

class WriteSafeTensors : public ModelFolder {};

TEST_F(WriteSafeTensors, IsReadAsItWasWritten) {
  const fs::path path = folder() / "a.safetensors";
  write_safetensors(
      path, {tensor("b", DType::BF16, {3}, 1), tensor("c \"quoted\"", DType::F32, {2, 2}, 2),
             tensor("a", DType::F32, {1}, 3), tensor("e", DType::F64, {}, 4),
             tensor("f", DType::F32, {0, 5}, 5)});
  const SafeTensors file = SafeTensors::map(path);
  EXPECT_EQ(file.metadata().at("format"), "pt");
  std::vector<std::string> names;
  for (const TensorView& view : file.tensors()) {
    names.push_back(view.name);
    const std::uint64_t width = std::max(1U, bits(view.dtype) / 8);
    EXPECT_EQ(view.file_offset % width, 0U) << view.name;
  }
  EXPECT_EQ(names, (std::vector<std::string>{"e", "a", "c \"quoted\"", "f", "b"}));
  EXPECT_EQ(file.tensors().front().file_offset % 64, 0U);
  EXPECT_EQ(file.at("b").data.size(), 6U);
  EXPECT_EQ(file.at("b").data[5], std::byte{1});
  EXPECT_EQ(file.at("c \"quoted\"").shape, (std::vector<Index>{2, 2}));
}

TEST_F(WriteSafeTensors, KeepsTheOldFileIfATensorCannotBeMade) {
  const fs::path path = write("a.safetensors", "old");
  TensorToWrite bad = tensor("a", DType::F32, {1}, 0);
  bad.fill = [](std::span<std::byte>) { throw std::bad_alloc(); };
  EXPECT_THROW(write_safetensors(path, {bad}), std::bad_alloc);
  EXPECT_EQ(fs::file_size(path), 3U);
  EXPECT_THROW(write_safetensors(path, {tensor("a", DType::F4, {1}, 0)}), std::invalid_argument);
  EXPECT_EQ(std::distance(fs::directory_iterator(folder()), fs::directory_iterator()), 1);
}

TEST_F(WriteSafeTensors, RefusesAnElementTypeThatIsNone) {
  const fs::path path = write("a.safetensors", "old");
  EXPECT_EQ(moe::testing::message_of([&] {
              write_safetensors(path, {tensor("a", DType::F32, {1}, 0),
                                       tensor("b", static_cast<DType>(99), {1}, 0)});
            }),
            "TensorToWrite: dtype = 99, expected one of the enum");
  EXPECT_EQ(fs::file_size(path), 3U);
}

TEST_F(WriteSafeTensors, RefusesNamesThatNoReaderTakes) {
  const fs::path path = write("a.safetensors", "old");
  const auto expect_bad = [&](std::vector<std::string> names, std::string_view fact) {
    std::vector<TensorToWrite> tensors;
    for (const std::string& name : names) {
      tensors.push_back(tensor(name, DType::F32, {1}, 0));
    }
    try {
      write_safetensors(path, tensors);
      ADD_FAILURE() << "accepted, expected: " << fact;
    } catch (const FormatError& error) {
      expect_message(error, path.string(), {fact});
    }
  };
  expect_bad({""}, "an empty name");
  expect_bad({"a\nb"}, "control characters");
  expect_bad({std::string("a\0b", 3)}, "control characters");
  expect_bad({"a\xFF"}, "not UTF-8");
  expect_bad({std::string(1025, 'a')}, "has 1025 bytes");
  expect_bad({"a", "b", "a"}, "appears twice");
  expect_bad({"__metadata__"}, "__metadata__ appears twice");
  EXPECT_EQ(fs::file_size(path), 3U);
  EXPECT_EQ(std::distance(fs::directory_iterator(folder()), fs::directory_iterator()), 1);
}

}  // namespace
}  // namespace moe::io::testing::write_safetensors_test
