// SPDX-License-Identifier: Apache-2.0
// The header as text: its length, its JSON, its fields, its names, its limits.
#include <string>

#include "safetensors_bytes.hpp"

namespace moe::io::testing::header_json_test {
namespace {

constexpr std::uint64_t huge = ~std::uint64_t{0};

std::string repeated(std::string_view text, std::size_t times) {
  std::string all;
  for (std::size_t i = 0; i < times; ++i) {
    all += text;
  }
  return all;
}

TEST(SafeTensorsHeader, ReadsTheSmallestFile) {
  const SafeTensors file = parse(file_of("{}"));
  EXPECT_TRUE(file.tensors().empty());
  EXPECT_TRUE(file.metadata().empty());
}

TEST(SafeTensorsHeader, RefusesFilesShorterThanTheLength) {
  for (std::size_t size = 0; size < 8; ++size) {
    expect_refused(zeros(size), {joined("has ", size, " bytes"), "at least 8"});
  }
}

TEST(SafeTensorsHeader, RefusesAnEmptyHeader) {
  expect_refused(zeros(8), {"byte 8", "header is empty"});
  expect_refused(file_of("   "), {"byte 11", "header is empty"});
}

TEST(SafeTensorsHeader, RefusesALengthBeyondTheFile) {
  expect_refused(file_of("{}", {}, 3), {"byte 0", "header length 3", "at most 2", "10 bytes"});
  expect_refused(file_of("{}", zeros(4), 7), {"header length 7", "at most 6"});
  expect_refused(file_of("{", {}, 1), {"invalid JSON", "unexpected end of input"});
}

TEST(SafeTensorsHeader, RefusesAnAbsurdLengthWhateverTheLimit) {
  const ReadLimits unlimited{.max_header_bytes = huge};
  for (const std::uint64_t length :
       {std::uint64_t{100'000'001}, std::uint64_t{1} << 63, huge - 7, huge}) {
    const std::string found = joined("header length ", length);
    expect_refused(file_of("{}", {}, length), {found, "at most 100000000"}, unlimited);
    expect_refused(file_of("{}", {}, length), {found, "at most 100000000"});
  }
}

TEST(SafeTensorsHeader, CapsTheLengthWhereTheCallerWants) {
  expect_refused(file_of("{}", {}, 32'000'001), {"at most 32000000", "max_header_bytes"});
  expect_refused(file_of("{}", {}, 32'000'001), {"at most 2 "}, {.max_header_bytes = 100'000'000});
  const std::string padded = joined("{}", std::string(62, ' '));
  expect_refused(file_of(padded), {"header length 64", "at most 63"}, {.max_header_bytes = 63});
  EXPECT_NO_THROW(parse(file_of(padded), {.max_header_bytes = 64}));
}

TEST(SafeTensorsHeader, AllowsJsonWhitespaceAroundTheObjectAndNothingElse) {
  EXPECT_NO_THROW(parse(file_of(" \t\r\n{ } \n\n")));
  expect_refused(file_of("\xEF\xBB\xBF{}"), {"byte 8", "does not begin with '{'"});
  expect_refused(file_of("\f{}"), {"byte 8", "does not begin with '{'"});
  expect_refused(file_of("\xC2\xA0{}"), {"does not begin with '{'"});
  for (const std::string_view behind : {"x", "{}", "]", ",", "//", "/**/", "\f"}) {
    const auto offset = expect_refused(file_of(joined("{}", behind)), {"invalid JSON"});
    EXPECT_GE(offset, 10U);
  }
}

TEST(SafeTensorsHeader, RefusesNulBytes) {
  using namespace std::string_view_literals;
  expect_refused(file_of("{}\0"sv), {"byte 10", "NUL"});
  expect_refused(file_of("{}\0\0\0{}"sv), {"byte 10", "NUL"});
  expect_refused(file_of("{\"a\0"sv), {"byte 11", "NUL"});
}

TEST(SafeTensorsHeader, RefusesOtherRoots) {
  for (const std::string_view json : {"[]", "[{}]", "null", "1", "\"{}\"", "true", "x"}) {
    expect_refused(file_of(json), {"byte 8", "does not begin with '{'"});
  }
}

TEST(SafeTensorsHeader, RefusesMalformedJson) {
  for (const std::string_view json :
       {"{", "{\"a\"", "{\"a\":", "{\"a\":{", "{,}", "{'a':{}}", "{a:{}}", "{/**/}", "{\"a\" {}}",
        "{\"__metadata__\":{\"a\":\"b\",}}", "{\"__metadata__\":{\"a\":NaN}}",
        "{\"a\":{\"dtype\":\"F3", "{]"}) {
    expect_refused(file_of(json), {"invalid JSON"});
  }
  expect_refused(file_of(header_of("\"U8\"", "[01]", "[0,1]"), zeros(1)), {"invalid JSON"});
  expect_refused(file_of(header_of("\"U8\"", "[+1]", "[0,1]"), zeros(1)), {"invalid JSON"});
  expect_refused(file_of(header_of("\"U8\"", "[0x1]", "[0,1]"), zeros(1)), {"invalid JSON"});
}

TEST(SafeTensorsHeader, RefusesTextThatIsNotUtf8) {
  for (const std::string_view name : {"\xFF", "\xC0\x80", "\xED\xA0\x80", "\xF4\x90\x80\x80",
                                      "\xC3", "\\ud800", "\\udc00\\ud800"}) {
    expect_refused(file_of(joined("{\"", name, "\":{}}")), {"invalid JSON"});
  }
}

TEST(SafeTensorsHeader, RefusesDeepNestingWithoutRecursion) {
  constexpr std::size_t depth = 200'000;
  expect_refused(file_of(repeated("[", depth)), {"does not begin with '{'"});
  expect_refused(file_of(joined("{\"a\":", repeated("[", depth))), {"found an array", "an object"});
  expect_refused(file_of(repeated("{\"a\":", depth)), {"unknown field \"a\""});
  expect_refused(file_of(joined("{\"w\":{\"shape\":", repeated("[", depth))), {"found an array"});
  expect_refused(file_of(joined("{\"__metadata__\":{\"a\":", repeated("[", depth))),
                 {"found an array"});
}

TEST(SafeTensorsHeader, RefusesRepeatedKeysAtEveryLevel) {
  const std::string a = u8_entry("a", 0, 4);
  expect_refused(file_of(joined("{", a, ",", a, "}"), zeros(4)),
                 {"tensor \"a\"", "twice", "first at byte 9"});
  expect_refused(file_of(joined("{", a, ",", u8_entry("\\u0061", 4, 8), "}"), zeros(8)),
                 {"tensor \"a\"", "twice"});
  for (const std::string_view field :
       {R"("dtype":"U8")", R"("shape":[4])", R"("data_offsets":[0,4])"}) {
    const std::string twice = joined(a.substr(0, a.size() - 1), ",", field, "}");
    expect_refused(file_of(joined("{", twice, "}"), zeros(4)), {"tensor \"a\"", "appears twice"});
  }
  expect_refused(file_of(R"({"__metadata__":{},"__metadata__":{}})"),
                 {"byte 27", "__metadata__ appears twice"});
  expect_refused(file_of(R"({"__metadata__":{"k":"1","k":"1"}})"), {"byte 33", "\"k\" twice"});
}

TEST(SafeTensorsHeader, ReadsMetadata) {
  const SafeTensors file =
      parse(file_of(R"({"__metadata__":{"format":"pt","text":"a\n\u0000b \u00e9"}})"));
  ASSERT_EQ(file.metadata().size(), 2U);
  EXPECT_EQ(file.metadata().at("format"), "pt");
  EXPECT_EQ(file.metadata().at("text"), std::string("a\n\0b \xC3\xA9", 7));
  EXPECT_TRUE(parse(file_of(R"({"__metadata__":{}})")).metadata().empty());
}

TEST(SafeTensorsHeader, RefusesMetadataThatDoesNotMapStringsToStrings) {
  const std::string start = R"({"__metadata__":{"k":)";
  for (const std::string_view value : {"1", "-1", "1.5", "null", "true", "{}", "[]"}) {
    const auto offset = expect_refused(file_of(joined(start, value, "}}")), {"a string"});
    EXPECT_EQ(offset, 8 + start.size()) << value;
  }
  for (const std::string_view value : {"1", "null", "\"a\"", "[]", "false"}) {
    expect_refused(file_of(joined("{\"__metadata__\":", value, "}")),
                   {"byte 24", "an object (__metadata__)"});
  }
}

TEST(SafeTensorsHeader, RefusesATensorCalledMetadata) {
  expect_refused(file_of(joined("{", u8_entry("__metadata__", 0, 4), "}"), zeros(4)),
                 {"found an array", "a string (__metadata__"});
}

TEST(SafeTensorsHeader, RefusesEntriesThatAreNoObjects) {
  for (const std::string_view value : {"1", "null", "\"a\"", "[]", "false"}) {
    expect_refused(file_of(joined("{\"w\":", value, "}")), {"tensor \"w\"", "byte 13"});
  }
}

TEST(SafeTensorsHeader, KnowsTheDtypesOfTheFormatAndNoOthers) {
  for (const DType dtype : {DType::BOOL, DType::F4, DType::F8_E5M2FNUZ, DType::BF16, DType::U64}) {
    EXPECT_EQ(parse_dtype(name(dtype)), dtype);
    const std::string bytes = std::to_string(bits(dtype));  // of 8 elements
    const std::string json =
        header_of(joined("\"", name(dtype), "\""), "[8]", joined("[0,", bytes, "]"));
    EXPECT_EQ(parse(file_of(json, zeros(bits(dtype)))).at("w").dtype, dtype);
  }
  for (const std::string_view dtype : {"f32", "F32 ", "", "F128", "F8", "float32", "I4"}) {
    expect_refused(file_of(header_of(joined("\"", dtype, "\""), "[1]", "[0,4]"), zeros(4)),
                   {"tensor \"w\"", joined("unknown dtype \"", dtype, "\"")});
  }
  for (const std::string_view dtype : {"1", "null", "[\"F32\"]", "{}"}) {
    expect_refused(file_of(header_of(dtype, "[1]", "[0,4]"), zeros(4)), {"a string (dtype)"});
  }
}

TEST(SafeTensorsHeader, RefusesMissingAndUnknownFields) {
  expect_refused(file_of(R"({"w":{}})"), {"tensor \"w\"", "\"dtype\" is missing"});
  expect_refused(file_of(R"({"w":{"shape":[1],"data_offsets":[0,1]}})", zeros(1)),
                 {"\"dtype\" is missing"});
  expect_refused(file_of(R"({"w":{"dtype":"U8","data_offsets":[0,1]}})", zeros(1)),
                 {"\"shape\" is missing"});
  expect_refused(file_of(R"({"w":{"dtype":"U8","shape":[1]}})", zeros(1)),
                 {"\"data_offsets\" is missing"});
  expect_refused(file_of(R"({"w":{"dtype":"U8","shape":[1],"strides":[1]}})", zeros(1)),
                 {"tensor \"w\"", "byte 39", "unknown field \"strides\""});
}

TEST(SafeTensorsHeader, RefusesOffsetsThatAreNotTwoUnsignedIntegers) {
  for (const std::string_view offsets : {"[]", "[0]", "[0,1,1]"}) {
    expect_refused(file_of(header_of("\"U8\"", "[1]", offsets), zeros(1)),
                   {"tensor \"w\"", "data_offsets has", "expected 2"});
  }
  for (const std::string_view number :
       {"-1", "-0", "1.0", "1e3", "0.5", "18446744073709551616", "-9223372036854775809", "1e300",
        "null", "true", "\"0\"", "[0]", "{}"}) {
    expect_refused(
        file_of(header_of("\"U8\"", "[1]", joined("[0,", number, "]")), zeros(1)),
        {"tensor \"w\"", "byte 57", "found", "an unsigned 64-bit integer (data_offsets)"});
  }
  expect_refused(file_of(header_of("\"U8\"", "[1]", "[0,1e999]"), zeros(1)), {"1e999"});
  for (const std::string_view value : {"0", "\"[0,1]\"", "{}", "null"}) {
    expect_refused(file_of(header_of("\"U8\"", "[1]", value), zeros(1)), {"(data_offsets)"});
  }
}

TEST(SafeTensorsHeader, RefusesShapesThatAreNotUnsignedIntegers) {
  for (const std::string_view number :
       {"-1", "2.5", "1e3", "18446744073709551616", "null", "\"1\"", "[1]", "{}", "false"}) {
    expect_refused(file_of(header_of("\"U8\"", joined("[", number, "]"), "[0,1]"), zeros(1)),
                   {"tensor \"w\"", "byte 36", "found", "an unsigned 64-bit integer (shape)"});
  }
  expect_refused(file_of(header_of("\"U8\"", "[9223372036854775808]", "[0,0]")),
                 {"dimension 9223372036854775808 is too large"});
  expect_refused(file_of(header_of("\"U8\"", "1", "[0,1]"), zeros(1)), {"an array (shape)"});
  expect_refused(
      file_of(header_of("\"U8\"", joined("[", std::string(3'000'000, '9'), "]"), "[0,1]")),
      {"tensor \"w\""});
}

TEST(SafeTensorsHeader, CapsTheRank) {
  for (const std::size_t rank : {0U, 1U, 8U, 9U, 16U}) {
    const std::string shape = rank == 0 ? "[]" : joined("[", repeated("1,", rank - 1), "1]");
    const SafeTensors file = parse(file_of(header_of("\"U8\"", shape, "[0,1]"), zeros(1)));
    EXPECT_EQ(file.at("w").shape.size(), rank);
  }
  for (const std::size_t rank : {17U, 1000U}) {
    const std::string shape = joined("[", repeated("1,", rank - 1), "1]");
    expect_refused(file_of(header_of("\"U8\"", shape, "[0,1]"), zeros(1)),
                   {"tensor \"w\"", "more than 16 dimensions"});
  }
}

TEST(SafeTensorsHeader, RefusesUnfitNames) {
  const auto named = [](std::string_view name) {
    return file_of(joined("{", u8_entry(name, 0, 1), "}"), zeros(1));
  };
  expect_refused(named(""), {"byte 9", "an empty name"});
  expect_refused(named("a\\u0000b"), {"byte 9", "\"a\\x00b\"", "control characters"});
  expect_refused(named("a\\nb"), {"control characters"});
  expect_refused(named("\\u001b[2J"), {"\\x1b[2J", "control characters"});
  expect_refused(named("a\x7F"), {"control characters"});
  expect_refused(named("a\xC2\x9B"), {"\\xc2\\x9b", "control characters"});
  expect_refused(named(std::string(1025, 'a')), {"has 1025 bytes", "at most 1024"});
  expect_refused(named(std::string(8'000'000, 'a')), {"has 8000000 bytes"});
  expect_refused(file_of(R"({"__metadata__":{"a\nb":""}})"), {"control characters"});
  EXPECT_TRUE(parse(named(std::string(1024, 'a'))).contains(std::string(1024, 'a')));
  EXPECT_TRUE(
      parse(named("\xC3\xA9 \xE4\xBD\xA0/\\\\.\\\"")).contains("\xC3\xA9 \xE4\xBD\xA0/\\.\""));
}

TEST(SafeTensorsHeader, CapsTheNumberOfTensorsAndMetadata) {
  const std::string two = joined("{", u8_entry("a", 0, 1), ",", u8_entry("b", 1, 2), "}");
  expect_refused(file_of(two, zeros(2)), {"more than 1 tensors"}, {.max_tensors = 1});
  EXPECT_NO_THROW(parse(file_of(two, zeros(2)), {.max_tensors = 2}));
  expect_refused(file_of(R"({"__metadata__":{"a":"","b":""}})"), {"too many keys"},
                 {.max_tensors = 1});
}

TEST(SafeTensorsHeader, PassesOneVeryLongString) {
  const std::string text(20'000'000, 'x');
  const std::string unfinished = joined(R"({"__metadata__":{"a":")", text);
  EXPECT_EQ(parse(file_of(unfinished + "\"}}")).metadata().at("a"), text);
  expect_refused(file_of(unfinished), {"invalid JSON", "missing closing"});
}

}  // namespace
}  // namespace moe::io::testing::header_json_test
