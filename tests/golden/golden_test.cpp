// SPDX-License-Identifier: Apache-2.0
// Our layers against layers of Hugging Face transformers: outputs, routing, losses and every
// gradient; and proofs that the comparison can fail.
#include "golden_case.hpp"

#include <moe/io/write_safetensors.hpp>
#include <moe/reference/product_keys.hpp>

#include <gtest/gtest.h>

#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>

namespace moe::golden::golden_test {
namespace {

std::vector<std::byte> bytes_of(const std::string& name) {
  std::ifstream in(std::string(MOE_GOLDEN_DIR) + "/" + name + ".safetensors", std::ios::binary);
  std::vector<std::byte> bytes;
  for (std::istreambuf_iterator<char> c(in), end; c != end; ++c) {
    bytes.push_back(static_cast<std::byte>(*c));
  }
  return bytes;
}

io::SafeTensors open(std::vector<std::byte> bytes) {
  return io::SafeTensors::from_bytes(std::move(bytes));
}

/// The file with one number of a tensor changed, the largest; weights, of which one alone may do
/// nothing (ReLU), all together. Integers are 0 or 1 and become the other, or an expert's number.
std::vector<std::byte> changed(const std::vector<std::byte>& original, const io::TensorView& tensor,
                               double factor) {
  std::vector<std::byte> bytes = original;
  const auto change = [&]<class V>(V) {
    std::vector<V> values(tensor.data.size() / sizeof(V));
    std::memcpy(values.data(), tensor.data.data(), tensor.data.size());
    const auto changed_value = [&](V value) {
      return std::is_integral_v<V> ? static_cast<V>(1 - value)
                                   : static_cast<V>(static_cast<double>(value) * factor);
    };
    if (tensor.name.starts_with("weights.")) {
      std::transform(values.begin(), values.end(), values.begin(), changed_value);
    } else {
      const auto largest = std::max_element(values.begin(), values.end(),
                                            [](V a, V b) { return std::abs(a) < std::abs(b); });
      *largest = changed_value(*largest);
    }
    std::memcpy(bytes.data() + tensor.file_offset, values.data(), tensor.data.size());
  };
  if (tensor.dtype == io::DType::I64) {
    change(std::int64_t{});
  } else if (tensor.dtype == io::DType::F64) {
    change(double{});
  } else {
    change(float{});
  }
  return bytes;
}

class Golden : public testing::TestWithParam<const char*> {};

TEST_P(Golden, DoubleAgreesWithFloat64RunToElevenDigits) {
  for (const Error& e : check_file<double>(open(bytes_of(GetParam())))) {
    EXPECT_TRUE(e.ok()) << e.tensor << ": " << e.error << ", expected at most " << e.bound;
  }
}

TEST_P(Golden, FloatAgreesWithFloat64RunToItsRounding) {
  for (const Error& e : check_file<float>(open(bytes_of(GetParam())))) {
    EXPECT_TRUE(e.ok()) << e.tensor << ": " << e.error << ", expected at most " << e.bound;
  }
}

INSTANTIATE_TEST_SUITE_P(
    Files, Golden,
    testing::Values("cohere2_moe_a", "cohere2_moe_b", "cohere2_moe_c", "deepseek_v2_a",
                    "deepseek_v2_b", "deepseek_v3_a", "deepseek_v3_c", "deepseek_v3_minf_a",
                    "deepseek_v3_minf_c", "deepseek_v4_a", "deepseek_v4_b", "deepseek_v4_c",
                    "ernie4_5_vl_moe_c", "gemma4_b", "gemma4_c", "glm_moe_dsa_b", "glm_moe_dsa_v",
                    "gpt_oss_b", "gpt_oss_c", "granitemoe_b", "granitemoe_c", "inkling_a",
                    "inkling_b", "inkling_c", "laguna_b", "laguna_c", "laguna_v", "minimax_m3_a",
                    "minimax_m3_b", "mistral4_a", "mistral4_b", "mistral4_c", "mixtral_a",
                    "mixtral_b", "mixtral_c", "nemotron_h_a", "nemotron_h_b", "nemotron_h_c",
                    "olmoe_b", "olmoe_c", "phimoe_b", "phimoe_c", "qwen2_moe_a", "qwen2_moe_b",
                    "qwen2_moe_c", "qwen3_5_moe_b", "qwen3_moe_b", "qwen3_moe_c", "step3p7_a",
                    "step3p7_b", "step3p7_c", "switch_transformers_a", "switch_transformers_b",
                    "switch_transformers_c"),
    [](const auto& file) { return std::string(file.param); });

/// The files in the folder of the recorded layers, without their ending.
std::vector<std::string> recorded() {
  std::vector<std::string> names;
  for (const auto& entry : std::filesystem::directory_iterator(MOE_GOLDEN_DIR)) {
    if (entry.path().extension() == ".safetensors") {
      names.push_back(entry.path().stem().string());
    }
  }
  return names;
}

TEST(GoldenFamilies, AreProvenByTheFilesThatTheirRowsName) {
  const auto files = recorded();
  for (const io::Family& family : io::detail::families) {
    const std::string begin = std::string(family.proven_by) + '_';
    EXPECT_TRUE(family.proven_by.empty() ||
                std::any_of(files.begin(), files.end(),
                            [&](const std::string& name) { return name.starts_with(begin); }))
        << family.name();
  }
  for (const std::string& name : files) {
    const auto file = open(bytes_of(name));
    const io::Family* const family = family_of_case(file.metadata().at("family"));
    ASSERT_NE(family, nullptr) << name;
    EXPECT_TRUE(!family->proven_by.empty() && name.starts_with(family->proven_by)) << name;
  }
}

class GoldenCheck : public testing::TestWithParam<const char*> {};

TEST_P(GoldenCheck, NoticesAChangeOfASingleNumberInAnyTensorOfAFile) {
  const auto original = bytes_of(GetParam());
  const auto file = open(original);
  for (const io::TensorView& tensor : file.tensors()) {
    if (tensor.name == "output.y") {
      EXPECT_FALSE(all_ok(check_file<float>(open(changed(original, tensor, 1.001)))));
    } else {
      EXPECT_FALSE(all_ok(check_file<double>(open(changed(original, tensor, 1 + 1e-6)))))
          << tensor.name;
    }
  }
}

TEST_P(GoldenCheck, FailsOnNaNInAnyTensorOfNumbers) {
  const auto original = bytes_of(GetParam());
  const auto file = open(original);
  for (const io::TensorView& tensor : file.tensors()) {
    if (tensor.dtype != io::DType::I64) {
      EXPECT_FALSE(all_ok(check_file<float>(open(changed(original, tensor, std::nan(""))))))
          << tensor.name;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Files, GoldenCheck,
                         testing::Values("mixtral_b", "switch_transformers_a", "qwen2_moe_b",
                                         "qwen3_5_moe_b", "gpt_oss_b", "mistral4_b"),
                         [](const auto& file) { return std::string(file.param); });

TEST(GoldenCheck, ThrowsOnATruncatedFile) {
  auto bytes = bytes_of("mixtral_c");
  bytes.pop_back();
  EXPECT_THROW(open(bytes), io::FormatError);
  bytes.resize(4);
  EXPECT_THROW(open(bytes), io::FormatError);
}

TEST(GoldenCheck, ThrowsOnAnUnknownFamily) {
  auto bytes = bytes_of("mixtral_c");
  const std::string_view all(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  const auto at = all.find("\"mixtral\"");
  ASSERT_NE(at, all.npos);
  std::memcpy(bytes.data() + at, "\"maxtril\"", 9);
  EXPECT_THROW(check_file<double>(open(bytes)), std::invalid_argument);
}

TEST(GoldenCheck, FailsOnATensorThatItDoesNotKnow) {
  auto bytes = bytes_of("mixtral_c");
  const std::string_view all(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  const auto at = all.find("\"output.y\"");
  ASSERT_NE(at, all.npos);
  std::memcpy(bytes.data() + at, "\"output.z\"", 10);
  EXPECT_FALSE(all_ok(check_file<double>(open(bytes))));
}

/// A layer of Doge's as a recorded one would be: outputs of plain loops, and gradients that the
/// layer's own test holds against differences.
std::vector<std::byte> product_key_file() {
  const char* const config = R"({"is_moe": true, "hidden_size": 6, "intermediate_size": 5,
      "num_experts": 9, "num_experts_per_tok": 4})";
  const Index tokens = 5;
  std::vector<io::TensorToWrite> all;
  const auto add = [&]<class M>(const std::string& name, io::DType type, const M& m) {
    all.push_back({name, type, {m.rows(), m.cols()}, [m](std::span<std::byte> to) {
                     std::memcpy(to.data(), m.data(), to.size());
                   }});
  };
  ProductKeyLayer<double> layer(
      {.d_model = 6, .keys = {3, 4, KeyReading::across_batch}, .shared_d_ff = 5}, 1);
  const Matrix<double> x = Matrix<double>::Random(tokens, 6),
                       dy = Matrix<double>::Random(tokens, 6);
  Matrix<double> y(tokens, 6), dx(tokens, 6);
  ProductKeyTape<double> tape;
  auto grads = layer.zero_grads();
  layer.for_each_parameter([](const std::string&, auto& m) { m.setRandom(); });
  layer.forward(x, y, tape);
  layer.backward(x, dy, tape, dx, grads);
  const Matrix<double> want = reference::product_key_layer(layer, x);
  add("input.x", io::DType::F64, x);
  add("input.r", io::DType::F64, dy);
  add("output.y64", io::DType::F64, want);
  add("output.y", io::DType::F32, Matrix<float>(want.cast<float>()));
  add("router.logits", io::DType::F64,
      Matrix<double>(Eigen::Map<const Matrix<double>>(tape.routing.logits.data(), 10, 3)));
  add("router.weights", io::DType::F64, Matrix<double>(tape.routing.weight));
  add("router.indices", io::DType::I64,
      Matrix<std::int64_t>(tape.routing.expert.cast<std::int64_t>()));
  add("grad.x", io::DType::F64, dx);
  const io::LayerNames names(*io::find_family("doge"), "", {}, [](const auto&) { return false; });
  layer.for_each_parameter(
      [&](const std::string& name, const auto& parameter, const auto& grad) {
        const auto place = names.place(name, {parameter.rows(), parameter.cols()});
        add("weights." + place.tensor, io::DType::F64, parameter);
        add("grad." + place.tensor, io::DType::F64, grad);
      },
      grads);
  const std::string path = testing::TempDir() + "moe_golden_product_keys.safetensors";
  io::write_safetensors(path, all,
                        {{"family", "doge"},
                         {"config", config},
                         {"semantics", ""},
                         {"shape", R"({"seq": 5, "tokens": 5})"}});
  std::ifstream in(path, std::ios::binary);
  const std::string bytes((std::istreambuf_iterator<char>(in)), {});
  in.close();  // Windows removes no file that is open
  std::filesystem::remove(path);
  const auto begin = reinterpret_cast<const std::byte*>(bytes.data());
  return {begin, begin + bytes.size()};
}

TEST(GoldenCheck, TakesProductKeysAndNoticesAChangeInAnyTensorOfThem) {
  const auto original = product_key_file();
  const auto file = open(original);
  EXPECT_TRUE(all_ok(check_file<double>(file)));
  EXPECT_TRUE(all_ok(check_file<float>(file)));
  for (const io::TensorView& tensor : file.tensors()) {
    const auto bytes = changed(original, tensor, tensor.name == "output.y" ? 1.001 : 1 + 1e-6);
    EXPECT_FALSE(all_ok(tensor.name == "output.y" ? check_file<float>(open(bytes))
                                                  : check_file<double>(open(bytes))))
        << tensor.name;
  }
}

TEST(GoldenCheck, AnEmptyListOfErrorsIsNotOk) { EXPECT_FALSE(all_ok({})); }

TEST(GoldenCheck, ErrorIsRelativeToTheLargestReferenceAndAbsoluteForZeros) {
  Matrix<double> got(1, 2), want(1, 2);
  got << 1.0, 8.5;
  want << 1.25, 8.0;
  EXPECT_EQ(relative_error(got, want), 0.0625);
  EXPECT_EQ(relative_error(got, Matrix<double>::Zero(1, 2)), 8.5);
  got(0, 0) = std::nan("");
  EXPECT_TRUE(std::isnan(relative_error(got, want)));
  EXPECT_TRUE(
      std::isnan(worst({{"a", Kind::loss, std::nan(""), 1}, {"b", Kind::loss, 1, 1}}, Kind::loss)));
}

}  // namespace
}  // namespace moe::golden::golden_test
