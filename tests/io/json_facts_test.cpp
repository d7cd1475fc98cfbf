// SPDX-License-Identifier: Apache-2.0
#include "moe/io/json_facts.hpp"

#include "model_folder.hpp"

namespace moe::io::testing::json_facts_test {
namespace {

using Kind = JsonFact::Kind;

TEST(JsonFacts, AreTheValuesByPath) {
  const JsonFacts facts = parse_json_facts(
      R"( {"a": 8, "b": {"c": "silu", "d": [1, null, "x"], "e": {}}, "f": -2.5, "g": true} )", "x");
  EXPECT_EQ(facts.size(), 7U);
  EXPECT_EQ(facts.at("a").kind, Kind::integer);
  EXPECT_EQ(facts.at("a").integer, 8);
  EXPECT_EQ(facts.at("a").number, 8.0);
  EXPECT_EQ(facts.at("b").kind, Kind::object);
  EXPECT_EQ(facts.at("b.c").text, "silu");
  EXPECT_EQ(facts.at("b.d").items.size(), 3U);
  EXPECT_EQ(facts.at("b.d").items[1].kind, Kind::null);
  EXPECT_EQ(facts.at("b.d").items[2].text, "x");
  EXPECT_EQ(facts.at("b.e").kind, Kind::object);
  EXPECT_EQ(facts.at("f").number, -2.5);
  EXPECT_EQ(facts.at("g").integer, 1);
}

TEST(JsonFacts, LeaveOutWhatObjectsAndListsInListsHold) {
  const JsonFacts facts =
      parse_json_facts(R"({"a": [{"b": 1, "c": [2, {"d": 3}]}, [4, [5]], 6], "b": 7})", "x");
  EXPECT_EQ(facts.size(), 2U);
  const auto& items = facts.at("a").items;
  ASSERT_EQ(items.size(), 3U);
  EXPECT_EQ(items[0].kind, Kind::object);
  EXPECT_EQ(items[1].kind, Kind::list);
  EXPECT_TRUE(items[1].items.empty());
  EXPECT_EQ(items[2].integer, 6);
  EXPECT_EQ(facts.at("b").integer, 7);
}

TEST(JsonFacts, TakeNumbersBeyondIntegersAsReal) {
  const JsonFacts facts =
      parse_json_facts(R"({"a": 9223372036854775807, "b": 18446744073709551615, "c": 1e30})", "x");
  EXPECT_EQ(facts.at("a").integer, 9223372036854775807);
  EXPECT_EQ(facts.at("b").kind, Kind::number);
  EXPECT_EQ(facts.at("c").number, 1e30);
}

void expect_refused_text(std::string_view text, std::string_view fact,
                         const ReadLimits& limits = {}) {
  expect_fault([&] { parse_json_facts(text, "config.json", limits); }, "config.json", "", {fact});
}

TEST(JsonFacts, RefuseWhatIsNoObject) {
  expect_refused_text("", "empty");
  expect_refused_text("[1]", "does not begin with '{'");
  expect_refused_text("\xEF\xBB\xBF{}", "does not begin with '{'");
  expect_refused_text(R"({"a": 1)", "invalid JSON");
  expect_refused_text(R"({"a": 1} x)", "invalid JSON");
  expect_refused_text(std::string_view("{}\0", 3), "NUL");
  expect_refused_text("{\"a\": \"\xC0\xAF\"}", "invalid JSON");
  expect_refused_text(R"({"a": 1e999})", "invalid JSON");
}

TEST(JsonFacts, RefuseAKeyThatAppearsTwice) {
  expect_refused_text(R"({"a": 1, "b": 2, "a": 1})", "\"a\" appears twice");
  expect_refused_text(R"({"a": {"b": 1, "b": 1}})", "\"a.b\" appears twice");
  expect_refused_text(R"({"a": {}, "a": {}})", "\"a\" appears twice");
}

TEST(JsonFacts, RefuseMoreThanTheLimits) {
  std::string deep = "{\"a\":";
  for (int i = 0; i < 100000; ++i) {
    deep += '[';
  }
  expect_refused_text(deep, "more than 16 objects or lists");
  expect_refused_text(R"({"a": [1, 2, 3]})", "more than 3 values", {.max_tensors = 3});
  expect_refused_text(R"({"abc": 1})", "expected at most 2", {.max_name_bytes = 2});
  expect_refused_text(R"({"a\u0007": 1})", "control characters");
}

TEST(JsonFacts, RefuseAFewBytesOfTextThatTakeMuchMemory) {
  const std::string name(1000, 'n');
  std::string text, end;
  for (int i = 0; i < 15; ++i) {
    text += joined("{\"", name, "\":");
    end += '}';
  }
  text += '{';
  for (int i = 0; i < 100'000; ++i) {  // each of a path of 15 kB: 1.5 GB of a file of 1 MB
    text += joined(i == 0 ? "\"" : ",\"", i, "\":1");
  }
  expect_refused_text(text + "}" + end, "less than 16 times the text");
}

TEST(JsonFacts, RefuseNumbersThatNoNumberHolds) {
  for (const char* number : {"1e999", "-1e999", "1e99999999999999999999"}) {
    expect_refused_text(joined("{\"a\": ", number, "}"), "invalid JSON");
  }
  const JsonFacts facts = parse_json_facts(
      R"({"a": 99999999999999999999999999, "b": -9223372036854775809, "c": 1e-999})", "x");
  EXPECT_EQ(facts.at("a").kind, Kind::number);
  EXPECT_EQ(facts.at("b").kind, Kind::number);
  EXPECT_EQ(facts.at("c").number, 0.0);
}

TEST(JsonFacts, RefuseKeysThatAreNoUtf8) {
  for (const char* key : {"\xFF", "a\xC0\x80", "\xED\xA0\x80", "\\ud800"}) {
    expect_refused_text(joined("{\"", key, "\": 1}"), "invalid JSON");
  }
}

class JsonFactsFile : public ModelFolder {};

TEST_F(JsonFactsFile, AreReadFromAFileWithinItsLimit) {
  const fs::path file = write("a.json", R"({"a": 1})");
  EXPECT_EQ(load_json_facts(file).at("a").integer, 1);
  expect_fault([&] { load_json_facts(file, {.max_header_bytes = 7}); }, file, "",
               {"8 bytes", "expected at most 7"});
  expect_fault([&] { load_json_facts(folder() / "none"); }, folder() / "none", "", {"cannot open"});
  expect_fault([&] { load_json_facts(folder()); }, folder(), "", {"not a regular file"});
}

}  // namespace
}  // namespace moe::io::testing::json_facts_test
