// SPDX-License-Identifier: Apache-2.0
// A GGUF header against itself and against the file: what others have read beyond the end of, made
// into sums that wrap, or allocated by a number in the file; and what mutation finds.
#include "moe/io/gguf_header.hpp"

#include <random>
#include <string>

#include "gguf_bytes.hpp"
#include "moe/io/gguf.hpp"
#include "safetensors_bytes.hpp"

namespace moe::io::testing::gguf_header_test {
namespace {

constexpr std::uint64_t most = ~std::uint64_t{0};

GgufFile good() {
  return {.keys = {{"general.architecture", gguf_text("qwen3moe")},
                   {"qwen3moe.block_count", gguf_u32(2)}},
          .tensors = {gguf_floats("a", {4, 3}, 1), gguf_floats("b", {5}, 20)}};
}

Gguf parse_gguf(const GgufFile& file, const ReadLimits& limits = {}) {
  return Gguf::from_bytes(bytes_of(file), "bad.gguf", limits);
}

std::optional<std::uint64_t> expect_no_gguf(GgufData bytes,
                                            std::initializer_list<std::string_view> facts,
                                            const ReadLimits& limits = {}) {
  try {
    Gguf::from_bytes(std::move(bytes), "bad.gguf", limits);
  } catch (const FormatError& error) {
    expect_message(error, "bad.gguf", facts);
    return error.offset();
  }
  ADD_FAILURE() << "accepted, expected: " << *facts.begin();
  return std::nullopt;
}
std::optional<std::uint64_t> expect_no_gguf(const GgufFile& file,
                                            std::initializer_list<std::string_view> facts,
                                            const ReadLimits& limits = {}) {
  return expect_no_gguf(bytes_of(file), facts, limits);
}

void expect_bad_key(const std::string& key, const GgufData& value,
                    std::initializer_list<std::string_view> facts) {
  GgufFile file = good();
  file.keys.push_back({key, value});
  expect_no_gguf(file, facts);
}

void expect_bad_tensor(const GgufTensor& tensor, std::initializer_list<std::string_view> facts) {
  GgufFile file = good();
  file.tensors.insert(file.tensors.begin(), tensor);
  expect_no_gguf(file, facts);
}

TEST(GgufHeader, HasItsTensorsRowMajor) {
  for (const std::uint32_t version : {2U, 3U}) {
    for (const bool pads : {true, false}) {
      GgufFile file = good();
      file.version = version;
      file.pads_end = pads;
      const Gguf read = parse_gguf(file);
      ASSERT_EQ(read.tensors().size(), 2U);
      EXPECT_EQ(read.at("a").shape, (std::vector<Index>{3, 4}));
      EXPECT_EQ(read.at("a").dtype, DType::F32);
      EXPECT_EQ(read.at("a").file_offset % 32, 0U);
      EXPECT_EQ(read.at("b").file_offset, read.at("a").file_offset + 64);
      float value = 0;
      std::memcpy(&value, read.at("b").data.data() + 4, sizeof value);
      EXPECT_EQ(value, 21.0F);
      EXPECT_EQ(read.facts().at("general.architecture").text, "qwen3moe");
    }
  }
}

TEST(GgufHeader, HasTheValuesOfItsKeys) {
  GgufFile file;
  file.keys = {{"u8", typed(0, raw<std::uint8_t>(200))},
               {"i8", typed(1, raw<std::int8_t>(-3))},
               {"u16", gguf_u16(65535)},
               {"i16", typed(3, raw<std::int16_t>(-4))},
               {"u32", gguf_u32(4294967295U)},
               {"i32", typed(5, raw<std::int32_t>(-5))},
               {"f32", gguf_f32(0.5F)},
               {"bool", gguf_bool(true)},
               {"u64", typed(10, raw(most))},
               {"i64", typed(11, raw<std::int64_t>(-6))},
               {"f64", typed(12, raw(0.1))},
               {"list", gguf_array(6, {raw(1.5F), raw(2.5F)})},
               {"texts", gguf_array(8, {raw_text("a"), raw_text("")})},
               {"none", gguf_array(4, {})},
               {"long", gguf_array(0, std::vector<GgufData>(5000, raw<std::uint8_t>(1)))}};
  const Gguf read = parse_gguf(file);
  const JsonFacts& facts = read.facts();
  EXPECT_EQ(facts.at("u8").integer, 200);
  EXPECT_EQ(facts.at("i8").integer, -3);
  EXPECT_EQ(facts.at("u16").integer, 65535);
  EXPECT_EQ(facts.at("i16").integer, -4);
  EXPECT_EQ(facts.at("u32").integer, 4294967295);
  EXPECT_EQ(facts.at("i32").integer, -5);
  EXPECT_EQ(facts.at("f32").number, 0.5);
  EXPECT_EQ(facts.at("bool").kind, JsonFact::Kind::boolean);
  EXPECT_EQ(facts.at("bool").integer, 1);
  EXPECT_EQ(facts.at("u64").kind, JsonFact::Kind::number);
  EXPECT_EQ(facts.at("i64").integer, -6);
  EXPECT_EQ(facts.at("f64").number, 0.1);
  ASSERT_EQ(facts.at("list").items.size(), 2U);
  EXPECT_EQ(facts.at("list").items[1].number, 2.5);
  EXPECT_EQ(facts.at("texts").integer, 2);
  EXPECT_TRUE(facts.at("texts").items.empty());
  EXPECT_EQ(facts.at("none").integer, 0);
  EXPECT_EQ(facts.at("long").integer, 5000);
  EXPECT_TRUE(facts.at("long").items.empty());
  EXPECT_EQ(facts.size(), file.keys.size());
}

TEST(GgufHeader, TakesAnotherAlignment) {
  for (const std::uint32_t alignment : {1U, 8U, 128U}) {
    GgufFile file = good();
    file.alignment = alignment;
    file.keys.push_back({"general.alignment", gguf_u32(alignment)});
    EXPECT_EQ(parse_gguf(file).at("b").file_offset % alignment, 0U);
  }
}

TEST(GgufHeader, RefusesWhatIsNoGguf) {
  EXPECT_EQ(expect_no_gguf(GgufData{}, {"expected it to begin with \"GGUF\""}), 0U);
  expect_no_gguf(GgufData(3, std::byte{'G'}), {"expected it to begin with \"GGUF\""});
  expect_no_gguf(GgufData(100), {"expected it to begin with \"GGUF\""});
  GgufFile file = good();
  file.version = 1;
  EXPECT_EQ(expect_no_gguf(file, {"version 1, expected 2 or 3"}), 4U);
  file.version = 4;
  expect_no_gguf(file, {"version 4"});
  file.version = 0;
  expect_no_gguf(file, {"version 0"});
  file.version = 0x03000000;
  expect_no_gguf(file, {"big-endian"});
}

TEST(GgufHeader, RefusesCountsThatTheFileHasNoRoomFor) {
  for (const auto count : {&GgufFile::num_tensors, &GgufFile::num_keys}) {
    GgufFile file = good();
    file.*count = most;
    expect_no_gguf(file, {" -1, expected at least 0"});
    file.*count = std::uint64_t{1} << 63;
    expect_no_gguf(file, {"expected at least 0"});
    file.*count = most / 2;
    expect_no_gguf(file, {"9223372036854775807, expected at most ", "bytes that follow"});
    file.*count = 1000;
    expect_no_gguf(file, {"1000, expected at most"});
  }
  GgufFile file = good();
  file.num_keys = 1;
  expect_no_gguf(file, {"tensor \"qwen3moe.block_count\""});  // for which the key is taken
  expect_no_gguf(good(), {"number of tensors 2", "ReadLimits::max_tensors"}, {.max_tensors = 1});
}

TEST(GgufHeader, RefusesTextBeyondTheFile) {
  for (const std::uint64_t length : {most, most / 2, std::uint64_t{1} << 40, std::uint64_t{500}}) {
    expect_bad_key("k", typed(8, raw_text("abc", length)), {"key \"k\"", "text of ", "file ends"});
    GgufFile file;
    file.num_keys = 1;
    GgufData bytes = header_of(file);
    append(bytes, raw_text("key", length));
    append(bytes, GgufData(20));
    expect_no_gguf(bytes, {"name of a key of ", "file ends"});
  }
}

TEST(GgufHeader, RefusesArraysThatLie) {
  const GgufData one = raw<std::uint32_t>(1);
  expect_bad_key("k", gguf_array(4, {one}, most), {"key \"k\"", "number of items -1"});
  expect_bad_key("k", gguf_array(4, {one}, std::uint64_t{1} << 62), {"number of items"});
  expect_bad_key("k", gguf_array(4, {one}, 10'000), {"number of items 10000, expected at most"});
  expect_bad_key("k", gguf_array(8, {}, 1'000), {"number of items 1000, expected at most"});
  expect_bad_key("k", gguf_array(9, {}), {"an array of arrays"});
  expect_bad_key("k", gguf_array(13, {one}), {"type of items 13, expected at most 12"});
  expect_bad_key("k", gguf_array(~0U, {one}), {"type of items 4294967295"});
  expect_bad_key("k", gguf_array(7, {raw<std::uint8_t>(2)}), {"BOOL of 2, expected 0 or 1"});
  expect_bad_key("k", gguf_array(7, std::vector<GgufData>(5000, raw<std::uint8_t>(3))),
                 {"BOOL of 3"});
  GgufFile file;
  for (const char* key : {"a", "b", "c"}) {
    file.keys.push_back({key, gguf_array(0, std::vector<GgufData>(40, raw<std::uint8_t>(1)))});
  }
  EXPECT_EQ(parse_gguf(file, {.max_tensors = 120}).facts().size(), 3U);
  expect_no_gguf(file, {"key \"c\"", "more than 119 items"}, {.max_tensors = 119});
}

TEST(GgufHeader, RefusesBadKeys) {
  expect_bad_key("", gguf_u32(1), {"name of a key is empty"});
  expect_bad_key("a\nb", gguf_u32(1), {"expected printable ASCII"});
  expect_bad_key(std::string("a\0b", 3), gguf_u32(1), {"expected printable ASCII"});
  expect_bad_key("\xc3\xa4", gguf_u32(1), {"expected printable ASCII"});
  expect_bad_key(std::string(1025, 'k'), gguf_u32(1), {"1025 bytes, expected at most 1024"});
  expect_bad_key("general.architecture", gguf_u32(1),
                 {"key \"general.architecture\"", "appears twice"});
  expect_bad_key("k", typed(13, raw<std::uint64_t>(0)), {"type 13, expected at most 12"});
  expect_bad_key("k", typed(7, raw<std::uint8_t>(255)), {"BOOL of 255"});
}

TEST(GgufHeader, RefusesBadAlignments) {
  const auto expect_bad = [](const GgufData& value, std::string_view fact) {
    expect_bad_key("general.alignment", value, {"key \"general.alignment\"", fact});
  };
  expect_bad(gguf_u32(0), "0, expected a power of two");
  expect_bad(gguf_u32(48), "48, expected a power of two");
  expect_bad(gguf_u32(~0U), "4294967295, expected a power of two");
  expect_bad(typed(10, raw<std::uint64_t>(32)), "U64, expected U32");
  expect_bad(typed(5, raw<std::int32_t>(32)), "I32, expected U32");
  expect_bad(gguf_text("32"), "text, expected U32");
  GgufFile file = good();
  file.keys.push_back({"general.alignment", gguf_u32(1U << 31)});
  expect_no_gguf(file, {"offset 64, expected 2147483648"});
}

TEST(GgufHeader, RefusesBadNamesOfTensors) {
  expect_bad_tensor(gguf_floats("", {1}), {"name of a tensor is empty"});
  expect_bad_tensor(gguf_floats("a\x1b[0m", {1}), {"expected printable ASCII"});
  expect_bad_tensor(gguf_floats(std::string(64, 'n'), {1}), {"64 bytes, expected at most 63"});
  expect_bad_tensor(gguf_floats("b", {1}), {"tensor \"b\"", "appears twice, first at byte "});
}

TEST(GgufHeader, RefusesBadShapes) {
  expect_bad_tensor({"w", {}, 0, {}}, {"tensor \"w\"", "0 dimensions, expected 1 to 4"});
  expect_bad_tensor(gguf_floats("w", {1, 1, 1, 1, 1}), {"5 dimensions, expected 1 to 4"});
  expect_bad_tensor({"w", {4, 0}, 0, {}}, {"a dimension of 0, expected at least 1"});
  expect_bad_tensor({"w", {most}, 0, {}}, {"a dimension of -1"});
  expect_bad_tensor({"w", {std::uint64_t{1} << 63}, 0, {}}, {"expected at least 1"});
  const std::uint64_t half = std::uint64_t{1} << 32;
  expect_bad_tensor({"w", {half, half}, 0, {}}, {"the number of elements overflows"});
  expect_bad_tensor({"w", {half, half, half, half}, 0, {}}, {"the number of elements overflows"});
  expect_bad_tensor({"w", {half, half / 4}, 28, {}}, {"the number of bytes overflows"});
  expect_bad_tensor({"w", {half, half / 8}, 0, {}}, {"but the file has"});
  GgufFile file;
  file.num_tensors = 1;
  GgufData bytes = header_of(file);
  append(bytes, raw_text("w"));
  append(bytes, raw<std::uint32_t>(~0U));  // dimensions
  append(bytes, GgufData(64));
  expect_no_gguf(bytes, {"4294967295 dimensions"});
}

TEST(GgufHeader, RefusesTypesThatThereAreNot) {
  for (const std::uint32_t type : {4U, 5U, 31U, 36U, 43U, 1000U, ~0U}) {
    expect_bad_tensor({"w", {256}, type, GgufData(1024)},
                      {"tensor \"w\"", "type of elements ", "expected one of those up to 42"});
  }
}

TEST(GgufHeader, RefusesRowsOfHalfABlock) {
  expect_bad_tensor({"w", {48}, 8, GgufData(51)}, {"Q8_0 [48], expected rows of a multiple of 32"});
  expect_bad_tensor({"w", {128, 2}, 12, GgufData(144)},
                    {"Q4_K [2, 128], expected rows of a multiple of 256"});
}

TEST(GgufHeader, RefusesOffsetsThatAreNotTheNext) {
  for (const std::uint64_t offset : {std::uint64_t{0}, std::uint64_t{48}, std::uint64_t{96}, most,
                                     std::uint64_t{1} << 63, most - 31}) {
    GgufFile file = good();
    file.tensors[1].offset = offset;
    expect_no_gguf(file, {"tensor \"b\"", "expected 64, where the tensor before it ends"});
  }
  GgufFile file = good();
  file.tensors[0].offset = 32;
  expect_no_gguf(file, {"tensor \"a\"", "offset 32, expected 0"});
}

TEST(GgufHeader, RefusesDataThatIsCutOrFollowed) {
  for (const bool pads : {true, false}) {
    GgufFile file = good();
    file.pads_end = pads;
    const GgufData whole = bytes_of(file);
    for (std::size_t size = 0; size < whole.size(); ++size) {
      if (!(pads && size == whole.size() - 12)) {  // 20 bytes of "b" without their padding
        expect_no_gguf(GgufData(whole.begin(), whole.begin() + static_cast<std::ptrdiff_t>(size)),
                       {"bad.gguf: "});
      }
    }
    for (const std::size_t more : {1U, 11U, 13U, 32U, 64U}) {
      GgufData longer = whole;
      append(longer, GgufData(more));
      expect_no_gguf(longer, {"bytes behind the last tensor, expected none or 12 of padding"});
    }
  }
  GgufData none = bytes_of(GgufFile{});
  none.push_back({});
  expect_no_gguf(none, {"1 bytes behind a header without tensors"});
}

TEST(GgufHeader, RefusesMoreThanTheReaderIsGiven) {
  expect_no_gguf(good(), {"expected a header of at most 100 bytes", "max_header_bytes"},
                 {.max_header_bytes = 100});
}

// Whatever a byte is changed to: read and used within the file, or refused.
TEST(GgufHeader, StandsMutation) {
  std::mt19937 random(1);
  GgufFile file = good();
  file.keys.push_back({"general.alignment", gguf_u32(32)});
  file.keys.push_back({"list", gguf_array(4, {raw(1U), raw(2U)})});
  const GgufData whole = bytes_of(file);
  int accepted = 0;
  for (int round = 0; round < 20'000; ++round) {
    GgufData bytes = whole;
    for (auto edits = random() % 3 + 1; edits > 0; --edits) {
      bytes[random() % bytes.size()] = static_cast<std::byte>(random() % 4 == 0 ? 255 : random());
    }
    try {
      const Gguf read = Gguf::from_bytes(bytes);
      ++accepted;
      for (const TensorView& tensor : read.tensors()) {
        ASSERT_LE(tensor.file_offset + tensor.data.size(), bytes.size());
      }
    } catch (const FormatError&) {
    }
  }
  EXPECT_GT(accepted, 0);
}

}  // namespace
}  // namespace moe::io::testing::gguf_header_test
