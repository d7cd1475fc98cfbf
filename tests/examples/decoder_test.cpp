// SPDX-License-Identifier: Apache-2.0
// examples/decoder against a decoder in plain loops in double, and what it must refuse.
#include "../../examples/decoder/check.hpp"

#include <cstdlib>

#include "tiny_models.hpp"

namespace moe::testing::decoder_test {
namespace {

using io::testing::joined, io::testing::NewTensors, io::testing::tensor_of;
using Ids = std::vector<std::int32_t>;

struct Case {
  const char* name;
  TinyModel (*make)(unsigned seed);

  friend std::ostream& operator<<(std::ostream& out, const Case& which) {
    return out << which.name;
  }
};

class DecoderFolder : public io::testing::ModelFolder {
 protected:
  void write_model(const TinyModel& tiny) const {
    write("config.json", tiny.config);
    write("model.safetensors", tiny.facts.tensors);
  }
  decoder::Report check(double tolerance = 1e-4) const {
    const decoder::Model<float> model(folder());
    const auto expected = io::SafeTensors::map(folder() / "expected.safetensors");
    return decoder::Check(model, expected).run(tolerance);
  }
};

NewTensors recorded(const ReferenceDecoder& facts, double& decisive) {
  const std::vector<Ids> texts{{3, 17, 5, 0, 28, 11, 9, 9, 21, 2},
                               {14, 1, 1, 26, 7, 19, 4, 23, 8, 12}};
  NewTensors all;
  std::map<std::string, std::vector<double>> numbers;
  std::map<std::string, std::vector<std::int64_t>> whole;
  const auto append = [](auto& to, const auto& matrix) {
    to.insert(to.end(), matrix.data(), matrix.data() + matrix.size());
  };
  for (const Ids& text : texts) {
    const auto run = facts.run(text);
    decisive = std::min(decisive, run.decisive);
    whole["input_ids"].insert(whole["input_ids"].end(), text.begin(), text.end());
    append(numbers["hidden.embed"], run.states.front());
    for (Index l = 0; l < facts.layers; ++l) {
      append(numbers[joined("hidden.layer.", l)], run.states[static_cast<std::size_t>(l) + 1]);
      append(whole[joined("router.", l, ".indices")], run.chosen[static_cast<std::size_t>(l)]);
    }
    append(numbers["hidden.norm"], run.states.back());
    append(numbers["logits"], run.logits);
    append(numbers["logits64"], run.logits);
  }
  Ids text{6, 13, 20, 2, 2};
  whole["prompt_ids"].assign(text.begin(), text.end());
  for (int step = 0; step < 16; ++step) {
    const auto run = facts.run(text);
    Vector last = run.logits.row(run.logits.rows() - 1);
    append(numbers["greedy_logits64"], last);
    Index best = 0;
    const double most = last.maxCoeff(&best);
    last(best) = -1e9;
    decisive = std::min({decisive, run.decisive, most - last.maxCoeff()});
    text.push_back(static_cast<std::int32_t>(best));
    whole["greedy_ids"].push_back(best);
  }
  for (const auto& [name, values] : numbers) {
    const Index cols = name.starts_with("hidden") ? facts.d_model : facts.vocabulary;
    all[name] = tensor_of("F64", {static_cast<Index>(values.size()) / cols, cols}, values);
  }
  for (const auto& [name, values] : whole) {
    const auto size = static_cast<Index>(values.size());
    const Index rows = name == "input_ids"          ? 2
                       : name.starts_with("router") ? size / facts.top_k
                                                    : 1;
    all[name] = tensor_of("I64", {rows, size / std::max<Index>(rows, 1)}, values);
  }
  return all;
}

class Decoder : public DecoderFolder, public ::testing::WithParamInterface<Case> {};

TEST_P(Decoder, IsThePlainOneInDouble) {
  TinyModel tiny;
  NewTensors expected;
  double decisive = 0;
  for (unsigned seed = 1; decisive < 1e-3; ++seed) {  // else rounding may change a choice
    ASSERT_LT(seed, 50u);
    tiny = GetParam().make(seed);
    decisive = 1e9;
    expected = recorded(tiny.facts, decisive);
  }
  write_model(tiny);
  write("expected.safetensors", expected);
  const decoder::Report report = check();
  EXPECT_TRUE(report.passed());
  for (const auto& [tensor, largest] : report.differences) {
    EXPECT_LE(largest, 1e-4) << tensor;
  }
  EXPECT_EQ(report.different_experts, 0);
  for (const auto& [place, wanted, found] : report.tokens) {
    ADD_FAILURE() << place << ": " << found << ", expected " << wanted;
  }
  if (const char* const path = std::getenv("MOE_KEEP_MODEL"); path != nullptr) {
    using Copy = std::filesystem::copy_options;
    std::filesystem::create_directories(path);
    std::filesystem::copy(folder(), path, Copy::overwrite_existing | Copy::recursive);
  }
}

INSTANTIATE_TEST_SUITE_P(Families, Decoder,
                         ::testing::Values(Case{"mixtral", tiny_mixtral},
                                           Case{"qwen2_moe", tiny_qwen2_moe},
                                           Case{"qwen3_moe", tiny_qwen3_moe},
                                           Case{"olmoe", tiny_olmoe},
                                           Case{"gpt_oss", tiny_gpt_oss}),
                         [](const auto& which) { return std::string(which.param.name); });

class DecoderCheck : public DecoderFolder {
 protected:
  void SetUp() override {
    DecoderFolder::SetUp();
    tiny_ = tiny_mixtral(1);
    write_model(tiny_);
    double decisive = 0;
    expected_ = recorded(tiny_.facts, decisive);
  }

  TinyModel tiny_;
  NewTensors expected_;
};

TEST_F(DecoderCheck, FailsByATokenThatDiffersAndNamesIt) {
  auto* const ids = reinterpret_cast<std::int64_t*>(expected_["greedy_ids"].data.data());
  const std::int64_t right = ids[3];
  ids[3] = (right + 1) % tiny_.facts.vocabulary;
  write("expected.safetensors", expected_);
  const decoder::Report report = check();
  EXPECT_FALSE(report.passed());
  ASSERT_EQ(report.tokens.size(), 1u);
  EXPECT_EQ(report.tokens[0].place, "greedy_ids 3");
  EXPECT_EQ(report.tokens[0].found, right);
}

TEST_F(DecoderCheck, FailsByALogitThatDiffersOrIsNaN) {
  auto* const logits = reinterpret_cast<double*>(expected_["logits64"].data.data());
  for (const double value : {logits[40] + 2e-4, std::nan("")}) {
    logits[40] = value;
    write("expected.safetensors", expected_);
    EXPECT_FALSE(check().passed()) << value;
  }
}

TEST_F(DecoderCheck, FailsByAnExpertThatDiffers) {
  auto* const experts = reinterpret_cast<std::int64_t*>(expected_["router.1.indices"].data.data());
  std::swap(experts[6], experts[7]);
  write("expected.safetensors", expected_);
  EXPECT_EQ(check().different_experts, 2);
  EXPECT_FALSE(check().passed());
}

class DecoderModel : public DecoderFolder {
 protected:
  /// A model whose config has `to` in place of `from` must be refused with this sentence.
  void expect_refused(TinyModel tiny, const std::string& from, const std::string& to,
                      const std::string& sentence) const {
    const std::size_t at = tiny.config.find(from);
    ASSERT_NE(at, std::string::npos) << from;
    tiny.config.replace(at, from.size(), to);
    write_model(tiny);
    expect_sentence(sentence);
  }
  void expect_sentence(const std::string& sentence) const {
    try {
      const decoder::Model<float> model(folder());
      ADD_FAILURE() << "accepted, expected: " << sentence;
    } catch (const io::FormatError& error) {
      EXPECT_NE(std::string(error.what()).find(sentence), std::string::npos) << error.what();
    }
  }
};

TEST_F(DecoderModel, RefusesAConfigThatItDoesNotKnow) {
  const TinyModel mixtral = tiny_mixtral(1);
  expect_refused(mixtral, R"("mixtral")", R"("minimax")",
                 "model_type: \"minimax\", expected one of");
  expect_refused(mixtral, R"("num_key_value_heads": 2)", R"("num_key_value_heads": 3)",
                 "expected a divisor of num_attention_heads = 4");
  expect_refused(mixtral, R"("vocab_size": 29, )", "", "vocab_size: no such key");
  expect_refused(mixtral, R"("num_attention_heads": 4)",
                 R"("num_attention_heads": 4, "head_dim": 4611686018427387904)",
                 "expected an even number in [2, 65536]");
  expect_refused(mixtral, R"("rope_theta": 1000000.0)",
                 R"("rope_scaling": {"type": "linear", "factor": 2.0})", "\"linear\", expected");
  expect_refused(tiny_qwen2_moe(1), R"("use_sliding_window": false)",
                 R"("use_sliding_window": true)", "layer_types: no such key");
}

TEST_F(DecoderModel, RefusesFilesThatAreNotWhatTheConfigSays) {
  const TinyModel tiny = tiny_qwen2_moe(1);
  expect_refused(tiny, R"("vocab_size": 29)", R"("vocab_size": 30)", "F32 [29, 24]");
  expect_refused(tiny, R"("qkv_bias": true)", R"("qkv_bias": false)",
                 "no parameter of such a model");
  expect_refused(tiny, R"("num_hidden_layers": 3)", R"("num_hidden_layers": 2)",
                 "no parameter of such a model");
  expect_refused(tiny, R"("num_hidden_layers": 3)", R"("num_hidden_layers": 1)", "no MoE layer");
  TinyModel without = tiny;
  without.facts.tensors.erase("model.layers.0.mlp.up_proj.weight");
  write_model(without);
  expect_sentence("model.layers.0.mlp.up_proj.weight");
}

TEST_F(DecoderModel, ReadsTextsOfAnyLengthsAsIfEachWereAlone) {
  write_model(tiny_gpt_oss(1));
  const decoder::Model<float> model(folder());
  const std::vector<Ids> texts{{1, 2, 3, 4, 5, 6, 7}, {8}, {9, 10}};
  decoder::Session<float> together(model, texts);
  together.append({11, 12, 13});
  for (std::size_t i = 0; i < texts.size(); ++i) {
    decoder::Session<float> alone(model, {texts[i]});
    alone.append({static_cast<std::int32_t>(11 + i)});
    EXPECT_LE(
        decoder::largest_difference(together.logits().row(static_cast<Index>(i)), alone.logits()),
        1e-4);
  }
}

TEST_F(DecoderModel, RefusesATokenThatIsNoneBeforeItReadsAny) {
  write_model(tiny_mixtral(1));
  const decoder::Model<float> model(folder());
  decoder::Sequence sequence = model.sequence();
  decoder::Model<float>::Scratch scratch;
  for (const Ids& ids : {Ids{1, 29}, Ids{1, -1}}) {
    const decoder::NewTokens tokens{&sequence, ids};
    EXPECT_THROW(model.forward({&tokens, 1}, scratch), std::invalid_argument);
    EXPECT_EQ(sequence.length(), 0);
  }
  EXPECT_THROW(decoder::Session<float>(model, {{1}, {}}), std::invalid_argument);
}

}  // namespace
}  // namespace moe::testing::decoder_test
