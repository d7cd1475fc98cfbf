// SPDX-License-Identifier: Apache-2.0
// Gguf as users hold it: the sources of its bytes, its lifetime, and the parts of a split file.
#include "moe/io/gguf.hpp"

#include "gguf_bytes.hpp"
#include "model_folder.hpp"

namespace moe::io::testing::gguf_test {
namespace {

class GgufFiles : public ModelFolder {
 protected:
  fs::path part(int number, int count) const {
    return folder() / joined("m", io::detail::end_of_part(number, count));
  }
  fs::path write_part(int number, int count, std::vector<GgufTensor> tensors, int total) const {
    const fs::path path = part(number, count);
    write(path.filename().string(), keys_of(number, count, std::move(tensors), total));
    return path;
  }
  fs::path write(const std::string& name, const GgufFile& file) const {
    return ModelFolder::write(name, bytes_of(file));
  }
  static GgufFile keys_of(int number, int count, std::vector<GgufTensor> tensors, int total) {
    return {.keys = {{"split.no", gguf_u16(static_cast<std::uint16_t>(number))},
                     {"split.count", gguf_u16(static_cast<std::uint16_t>(count))},
                     {"split.tensors.count", typed(5, raw<std::int32_t>(total))}},
            .tensors = std::move(tensors)};
  }
  void write_three() const {
    write_part(0, 3, {}, 3);  // as some tools have it, the keys alone
    write_part(1, 3, {gguf_floats("a", {2}, 1), gguf_floats("b", {3}, 2)}, 3);
    write_part(2, 3, {gguf_floats("c", {4}, 3)}, 3);
  }
};

TEST_F(GgufFiles, AreTheSameFromEverySource) {
  const GgufFile file{.keys = {{"k", gguf_u32(7)}}, .tensors = {gguf_floats("w", {2, 3}, 1)}};
  const fs::path path = write("m.gguf", file);
  const auto check = [](const Gguf& read) {
    EXPECT_EQ(read.facts().at("k").integer, 7);
    EXPECT_EQ(read.at("w").shape, (std::vector<Index>{3, 2}));
    float value = 0;
    std::memcpy(&value, read.at("w").data.data() + 20, sizeof value);
    EXPECT_EQ(value, 6.0F);
  };
  check(Gguf::map(path));
  check(Gguf::load(path));
  check(Gguf::from_bytes(bytes_of(file)));
  Gguf moved = Gguf::map(path);
  const Gguf holder = std::move(moved);
  check(holder);
}

TEST_F(GgufFiles, AreRefusedWithTheirPath) {
  const fs::path text = ModelFolder::write("text.gguf", std::string_view("no GGUF at all"));
  const fs::path empty = ModelFolder::write("empty.gguf", std::string_view(""));
  for (const auto open : {&Gguf::map, &Gguf::load}) {
    expect_fault([&] { open(text, {}); }, text, "", {"expected it to begin with \"GGUF\""});
    expect_fault([&] { open(empty, {}); }, empty, "", {"expected it to begin with \"GGUF\""});
    expect_fault([&] { open(folder(), {}); }, folder(), "", {"not a regular file"});
  }
}

#if !defined(_WIN32)  // which does not let a mapped file shrink
TEST_F(GgufFiles, TellThatTheyShrank) {
  const fs::path path = write("m.gguf", GgufFile{.tensors = {gguf_floats("w", {1000})}});
  const Gguf file = Gguf::map(path);
  fs::resize_file(path, 100);
  expect_fault([&] { file.at("w"); }, path, "w", {"the file shrank after it was mapped"});
}
#endif

TEST_F(GgufFiles, AreOpenedByTheFirstOfTheirParts) {
  write_three();
  const std::vector<Gguf> parts = map_gguf_parts(part(0, 3));
  ASSERT_EQ(parts.size(), 3U);
  EXPECT_TRUE(parts[1].contains("b"));
  EXPECT_TRUE(parts[2].contains("c"));
  expect_fault([&] { map_gguf_parts(part(1, 3)); }, part(1, 3), "",
               {"split.no 1 of split.count 3, expected 0 of 3, the first part"});
}

TEST_F(GgufFiles, OfOnePartNeedNotSaySo) {
  EXPECT_EQ(map_gguf_parts(write("one.gguf", GgufFile{})).size(), 1U);
  // What parts become when they are joined again.
  GgufFile joined = keys_of(0, 0, {gguf_floats("w", {2})}, 1);
  EXPECT_EQ(map_gguf_parts(write("joined.gguf", joined)).size(), 1U);
}

TEST_F(GgufFiles, AreRefusedUnlessTheirPartsFit) {
  const auto expect_bad = [&](const fs::path& file, std::string_view tensor,
                              std::initializer_list<std::string_view> facts) {
    expect_fault([&] { map_gguf_parts(part(0, 3)); }, file, tensor, facts);
  };
  write_three();
  write_part(2, 3, {gguf_floats("a", {4})}, 3);
  expect_bad(part(2, 3), "a", {"also in another part"});
  write_part(2, 3, {}, 3);
  expect_bad(part(0, 3), "", {"split.tensors.count 3, but its parts have 2 tensors"});
  fs::remove(part(2, 3));
  expect_bad(part(2, 3), "", {"cannot open"});
  write_three();
  write(part(2, 3).filename().string(), keys_of(1, 3, {gguf_floats("c", {4})}, 3));
  expect_bad(part(2, 3), "", {"split.no 1 of split.count 3, expected 2 of 3"});
  write(part(2, 3).filename().string(), keys_of(2, 4, {gguf_floats("c", {4})}, 3));
  expect_bad(part(2, 3), "", {"split.count 4, expected 2 of 3"});
  write(part(0, 3).filename().string(), GgufFile{.keys = {{"split.count", gguf_text("3")}}});
  expect_bad(part(0, 3), "", {"key \"split.count\"", "expected a whole number"});
  write(part(0, 3).filename().string(),
        GgufFile{.keys = {{"split.count", typed(5, raw<std::int32_t>(-3))}}});
  expect_bad(part(0, 3), "", {"split.count -3, expected 0 to 65535"});
  const fs::path renamed = write("m.gguf", keys_of(0, 3, {}, 3));
  expect_fault([&] { map_gguf_parts(renamed); }, renamed, "",
               {"expected a name that ends with -00001-of-00003.gguf"});
}

}  // namespace
}  // namespace moe::io::testing::gguf_test
