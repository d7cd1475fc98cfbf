// SPDX-License-Identifier: Apache-2.0
// The header against itself and against the file: sizes, overlaps, holes, and what mutation finds.
#include <random>
#include <string>

#include "safetensors_bytes.hpp"

namespace moe::io::testing::header_check_test {
namespace {

std::string header_of_u8(std::initializer_list<std::string> entries) {
  std::string json = "{";
  for (const std::string& entry : entries) {
    json += joined(json.size() > 1 ? "," : "", entry);
  }
  return json + "}";
}

TEST(SafeTensorsLayout, ReadsTensorsInTheOrderOfTheirData) {
  const std::string json = header_of_u8(
      {u8_entry("c", 6, 7), u8_entry("a", 2, 6), u8_entry("empty", 2, 2), u8_entry("b", 0, 2)});
  const SafeTensors file =
      parse(file_of(json, bytes_of(std::vector<std::uint8_t>{0, 1, 2, 3, 4, 5, 6})));
  ASSERT_EQ(file.tensors().size(), 4U);
  EXPECT_EQ(file.tensors()[0].name, "b");
  EXPECT_EQ(file.tensors()[1].name, "empty");
  EXPECT_EQ(file.tensors()[2].name, "a");
  EXPECT_EQ(file.tensors()[3].name, "c");
  const TensorView& a = file.at("a");
  EXPECT_EQ(a.shape, std::vector<Index>{4});
  EXPECT_EQ(a.file_offset, 8 + json.size() + 2);
  ASSERT_EQ(a.data.size(), 4U);
  EXPECT_EQ(a.data[0], std::byte{2});
  EXPECT_TRUE(file.contains("empty"));
  EXPECT_FALSE(file.contains("d"));
}

TEST(SafeTensorsLayout, NamesFileTensorAndByteInTheMessage) {
  try {
    parse(file_of(header_of("\"F32\"", "[4, 8]", "[0,96]"), zeros(96)));
    FAIL();
  } catch (const FormatError& error) {
    EXPECT_STREQ(error.what(),
                 "bad.safetensors: tensor \"w\", byte 9: data_offsets [0, 96), expected 128 bytes "
                 "(F32 [4, 8])");
    EXPECT_EQ(error.tensor(), "w");
    EXPECT_EQ(error.offset(), 9U);
  }
}

TEST(SafeTensorsLayout, RefusesOverlappingTensors) {
  expect_refused(file_of(header_of_u8({u8_entry("a", 0, 4), u8_entry("b", 2, 6)}), zeros(6)),
                 {"tensor \"b\"", "[2, 6) overlaps tensor \"a\"", "begin at 4"});
  expect_refused(file_of(header_of_u8({u8_entry("a", 0, 4), u8_entry("b", 0, 4)}), zeros(4)),
                 {"overlaps"});
  expect_refused(file_of(header_of_u8({u8_entry("a", 0, 4), u8_entry("b", 1, 1)}), zeros(4)),
                 {"tensor \"b\"", "overlaps tensor \"a\""});
}

TEST(SafeTensorsLayout, RefusesManyTensorsOnOneRange) {
  std::string json = "{";
  for (int i = 0; i < 100'000; ++i) {
    json += joined(i == 0 ? "" : ",", u8_entry(joined("t", i), 0, 1000));
  }
  expect_refused(file_of(json + "}", zeros(1000)), {"[0, 1000) overlaps", "begin at 1000"});
}

TEST(SafeTensorsLayout, RefusesHoles) {
  expect_refused(file_of(header_of_u8({u8_entry("a", 0, 4), u8_entry("b", 5, 6)}), zeros(6)),
                 {"tensor \"b\"", "[5, 6) leaves a hole after tensor \"a\"", "begin at 4"});
  expect_refused(file_of(header_of_u8({u8_entry("a", 1, 4)}), zeros(4)),
                 {"tensor \"a\"", "leaves a hole after the header", "begin at 0"});
}

TEST(SafeTensorsLayout, RefusesReversedRanges) {
  expect_refused(file_of(header_of("\"U8\"", "[4]", "[4,0]"), zeros(4)),
                 {"tensor \"w\"", "[4, 0) ends before it begins"});
  expect_refused(file_of(header_of("\"U8\"", "[0]", "[18446744073709551615,0]")),
                 {"ends before it begins"});
}

TEST(SafeTensorsLayout, RefusesBytesBehindTheLastTensor) {
  const auto offset = expect_refused(file_of(header_of("\"U8\"", "[4]", "[0,4]"), zeros(7)),
                                     {"3 bytes behind the last tensor", "expected none"});
  EXPECT_EQ(offset, 8 + header_of("\"U8\"", "[4]", "[0,4]").size() + 4);
  expect_refused(file_of("{}", zeros(1)), {"byte 10", "1 bytes behind the last tensor"});
}

TEST(SafeTensorsLayout, RefusesEveryTruncation) {
  const std::string json = header_of_u8({u8_entry("a", 0, 4), u8_entry("b", 4, 8)});
  const FileBytes whole = file_of(json, zeros(8));
  EXPECT_NO_THROW(parse(whole));
  for (std::size_t size = 0; size < whole.size(); ++size) {
    EXPECT_THROW(parse(FileBytes(whole.begin(), whole.begin() + static_cast<Index>(size))),
                 FormatError)
        << size;
  }
  expect_refused(file_of(json, zeros(7)), {"tensor \"b\"", "[4, 8)", "ends after 7 bytes of data"});
}

TEST(SafeTensorsLayout, RefusesSizesThatDisagreeWithTheShape) {
  expect_refused(file_of(header_of("\"F64\"", "[2,3]", "[0,47]"), zeros(47)),
                 {"[0, 47), expected 48 bytes (F64 [2, 3])"});
  expect_refused(file_of(header_of("\"F32\"", "[]", "[0,0]")), {"expected 4 bytes (F32 [])"});
  expect_refused(file_of(header_of("\"F32\"", "[3,0]", "[0,4]"), zeros(4)),
                 {"expected 0 bytes (F32 [3, 0])"});
  expect_refused(file_of(header_of("\"U8\"", "[1,1,1,1,1,1,1,1]", "[0,99999999]"), zeros(16)),
                 {"expected 1 bytes"});
  expect_refused(file_of(header_of("\"U8\"", "[99999999]", "[0,99999999]"), zeros(16)),
                 {"ends after 16 bytes of data"});
}

TEST(SafeTensorsLayout, RefusesSizesThatOverflow) {
  for (const std::string_view shape :
       {"[4294967296,4294967296]", "[4611686018427387904,4]", "[4,4611686018427387904]",
        "[9223372036854775807,2]", "[9223372036854775807,9223372036854775807,0]",
        "[65536,65536,65536,65536]", "[0,4611686018427387904,4]"}) {
    expect_refused(file_of(header_of("\"U8\"", shape, "[0,0]")),
                   {"tensor \"w\"", "number of elements overflows"});
  }
  expect_refused(file_of(header_of("\"F64\"", "[2305843009213693952]", "[0,0]")),
                 {"number of bits overflows"});
  expect_refused(file_of(header_of("\"F32\"", "[4611686018427387904]", "[0,0]")),
                 {"number of bits overflows"});
  expect_refused(file_of(header_of("\"U8\"", "[2305843009213693951]", "[0,2305843009213693951]")),
                 {"ends after 0 bytes of data"});
}

TEST(SafeTensorsLayout, RefusesEmptyTensorsOutsideTheData) {
  expect_refused(file_of(header_of("\"U8\"", "[0]", "[18446744073709551615,18446744073709551615]")),
                 {"tensor \"w\"", "ends after 0 bytes of data"});
  expect_refused(file_of(header_of("\"U8\"", "[0]", "[1,1]"), zeros(1)), {"leaves a hole"});
}

TEST(SafeTensorsLayout, PacksElementsSmallerThanAByte) {
  EXPECT_EQ(parse(file_of(header_of("\"F4\"", "[2,3]", "[0,3]"), zeros(3))).at("w").data.size(),
            3U);
  EXPECT_NO_THROW(parse(file_of(header_of("\"F6_E2M3\"", "[4]", "[0,3]"), zeros(3))));
  expect_refused(file_of(header_of("\"F4\"", "[3]", "[0,2]"), zeros(2)),
                 {"F4 [3] does not end on a whole byte"});
  expect_refused(file_of(header_of("\"F6_E3M2\"", "[2]", "[0,2]"), zeros(2)),
                 {"F6_E3M2 [2] does not end on a whole byte"});
}

// Whatever happens to a good file, it is read or refused; what is read is really there.
TEST(SafeTensorsLayout, SurvivesMutation) {
  const std::vector<FileBytes> seeds{
      file_of(header_of_u8({R"("__metadata__":{"format":"pt","k":"\u00e9"})", u8_entry("a", 0, 4),
                            R"("b":{"dtype":"F32","shape":[2,3],"data_offsets":[4,28]})",
                            R"("s":{"dtype":"BF16","shape":[],"data_offsets":[28,30]})"}),
              zeros(30)),
      file_of(header_of("\"F4\"", "[2,1,3]", "[0,3]") + "   ", zeros(3))};
  const std::string alphabet = "{}[]\",:0123456789-+.eE\\u dtypeshapF\xC3\xFF";
  std::mt19937_64 random(20260101);
  const auto below = [&](std::size_t bound) { return static_cast<std::size_t>(random() % bound); };
  int accepted = 0;
  for (int round = 0; round < 40'000; ++round) {
    FileBytes file = seeds[below(seeds.size())];
    for (std::size_t edits = 1 + below(3); edits > 0 && !file.empty(); --edits) {
      const auto at = file.begin() + static_cast<Index>(below(file.size()));
      const auto value = static_cast<std::byte>(
          below(2) == 0 ? static_cast<unsigned char>(random())
                        : static_cast<unsigned char>(alphabet[below(alphabet.size())]));
      switch (below(5)) {
        case 0:
          file.insert(at, value);
          break;
        case 1:
          file.erase(at);
          break;
        case 2:
          file.resize(below(file.size()));
          break;
        default:
          *at = value;
      }
    }
    try {
      const SafeTensors parsed = parse(std::move(file));
      ++accepted;
      for (const TensorView& tensor : parsed.tensors()) {
        EXPECT_EQ(&parsed.at(tensor.name), &tensor);
        const FileBytes copy(tensor.data.begin(), tensor.data.end());  // for the sanitizer
      }
    } catch (const FormatError& error) {
      EXPECT_EQ(error.file(), "bad.safetensors");
      EXPECT_LT(std::string(error.what()).size(), 1000U);
    }
  }
  EXPECT_GT(accepted, 100);
}

}  // namespace
}  // namespace moe::io::testing::header_check_test
