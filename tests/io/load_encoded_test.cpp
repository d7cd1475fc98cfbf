// SPDX-License-Identifier: Apache-2.0
// Layers whose weights lie in codes and scales: which of their values stand where, whichever way
// they are kept, and what a storage keeps of them bit for bit.
#include "../support/random_matrix.hpp"
#include "encoded_tensors.hpp"
#include "moe/io/load_layer.hpp"
#include "moe/reference.hpp"
#include "small_models.hpp"

namespace moe::io::testing::load_encoded_test {
namespace {

constexpr Index experts = 2, width = 160, hidden = 96;
const std::string block = "model.layers.0.mlp.";

constexpr std::string_view qwen3_config =
    R"({"model_type": "qwen3_moe", "hidden_size": 160, "moe_intermediate_size": 96,
        "num_experts": 2, "num_experts_per_tok": 1, "norm_topk_prob": true})";

/// A layer as it is published, and its experts' weights.
struct EncodedLayer {
  NewTensors tensors;
  std::vector<ExpertTensors<Matrix<double>>> experts;

  void add(const EncodedTensors& made) {
    for (const auto& [name, tensor] : made.tensors) {
      tensors[name] = tensor;
    }
  }
};

/// Of experts.N.gate_proj and so on, as encode(stem, rows, cols) makes them.
template <class Encode>
EncodedLayer layer_of(Encode&& encode) {
  EncodedLayer layer;
  layer.tensors[block + "gate.weight"] = weights(1, {experts, width});
  for (Index e = 0; e < experts; ++e) {
    const std::string expert = joined(block, "experts.", e, ".");
    const EncodedTensors gate = encode(expert + "gate_proj", hidden, width),
                         up = encode(expert + "up_proj", hidden, width),
                         down = encode(expert + "down_proj", width, hidden);
    layer.add(gate);
    layer.add(up);
    layer.add(down);
    layer.experts.push_back({.gate = gate.values, .up = up.values, .down = down.values});
  }
  return layer;
}

EncodedTensors fp8(const std::string& stem, Index rows, Index cols) {
  return fp8_blocks(stem + ".weight", {rows, cols}, stem + ".weight_scale_inv");
}
EncodedTensors mxfp4_of(const std::string& stem, Index rows, Index cols) {
  return mxfp4_packed(stem + ".weight", rows, cols);
}

class LoadEncoded : public ModelFolder {
 protected:
  void write_model(const NewTensors& tensors, std::string_view config = qwen3_config) const {
    write("config.json", config);
    write("model.safetensors", tensors);
  }
  fs::path file() const { return folder() / "model.safetensors"; }
  void expect_bad(const NewTensors& tensors, std::string_view tensor,
                  std::initializer_list<std::string_view> facts,
                  std::string_view config = qwen3_config) const {
    write_model(tensors, config);
    expect_fault([&] { load_layer<float>(folder(), 0); }, file(), tensor, facts);
    expect_fault([&] { load_packed<mxfp4>(folder(), 0); }, file(), tensor, facts);
  }
};

template <class T>
Matrix<T> rounded(const Matrix<double>& values) {
  return values.unaryExpr([](double value) { return kernels::convert<T>(value); });
}

template <class Layer>
void expect_weights(const Layer& layer, const EncodedLayer& made) {
  using T = typename std::decay_t<decltype(layer.experts()[0].params().up)>::Scalar;
  for (std::size_t e = 0; e < made.experts.size(); ++e) {
    const auto& got = layer.experts()[e].params();
    EXPECT_EQ(got.gate, rounded<T>(made.experts[e].gate)) << e;
    EXPECT_EQ(got.up, rounded<T>(made.experts[e].up)) << e;
    EXPECT_EQ(got.down, rounded<T>(made.experts[e].down)) << e;
  }
}

TEST_F(LoadEncoded, TakesEveryConventionOfAnExpertsOwnTensors) {
  const PackedIntegers integers{.zero_points = true};
  const EncodedLayer layers[] = {layer_of(fp8),   layer_of(mxfp4_of),     layer_of(mxfp4_signed),
                                 layer_of(nvfp4), layer_of(nvfp4_packed), layer_of(integers)};
  for (const EncodedLayer& layer : layers) {
    SCOPED_TRACE(layer.tensors.rbegin()->first);
    write_model(layer.tensors);
    expect_weights(load_layer<double>(folder(), 0), layer);
    expect_weights(load_layer<float>(folder(), 0), layer);
    expect_weights(load_layer<bf16>(folder(), 0), layer);
    expect_weights(unpack(load_packed<float>(folder(), 0)), layer);
  }
}

// Of floats with more digits than a float has, no bfloat16 is rounded twice.
TEST_F(LoadEncoded, PackedWeightsAreRoundedOnce) {
  const EncodedLayer layer = layer_of(fp8);
  write_model(layer.tensors);
  const auto packed = unpack(load_packed<bf16>(folder(), 0));
  for (std::size_t e = 0; e < layer.experts.size(); ++e) {
    const Matrix<float> want = rounded<bf16>(layer.experts[e].up).cast<float>();
    EXPECT_EQ(packed.experts()[e].params().up, want);
  }
}

TEST_F(LoadEncoded, TakesFusedExpertsInBlocksOfFp8) {
  EncodedLayer layer;
  layer.tensors[block + "gate.weight"] = weights(1, {experts, width});
  const std::string gate_up = block + "experts.gate_up_proj", down = block + "experts.down_proj";
  const EncodedTensors both =
      fp8_blocks(gate_up, {experts, 2 * hidden, width}, gate_up + "_scale_inv");
  const EncodedTensors out = fp8_blocks(down, {experts, width, hidden}, down + "_scale_inv");
  layer.add(both);
  layer.add(out);
  for (Index e = 0; e < experts; ++e) {
    layer.experts.push_back({.gate = both.values.middleRows(2 * e * hidden, hidden),
                             .up = both.values.middleRows((2 * e + 1) * hidden, hidden),
                             .down = out.values.middleRows(e * width, width)});
  }
  write_model(layer.tensors);
  expect_weights(load_layer<float>(folder(), 0), layer);
  expect_weights(unpack(load_packed<moe::fp8>(folder(), 0)), layer);
}

/// Rows are outputs, and gate and up take turns; floats of the same model are the other way round.
EncodedLayer gpt_oss() {
  EncodedLayer layer;
  const std::string gate_up = block + "experts.gate_up_proj", down = block + "experts.down_proj";
  layer.tensors[block + "router.weight"] = weights(1, {experts, width});
  layer.tensors[block + "router.bias"] = weights(2, {experts});
  layer.tensors[gate_up + "_bias"] = weights(3, {experts, 2 * hidden});
  layer.tensors[down + "_bias"] = weights(4, {experts, width});
  const EncodedTensors both = mxfp4_blocks(gate_up, {experts, 2 * hidden, width});
  const EncodedTensors out = mxfp4_blocks(down, {experts, width, hidden});
  layer.add(both);
  layer.add(out);
  for (Index e = 0; e < experts; ++e) {
    ExpertTensors<Matrix<double>> expert{.gate = Matrix<double>(hidden, width),
                                         .up = Matrix<double>(hidden, width),
                                         .down = out.values.middleRows(e * width, width)};
    for (Index row = 0; row < hidden; ++row) {
      expert.gate.row(row) = both.values.row(2 * (e * hidden + row));
      expert.up.row(row) = both.values.row(2 * (e * hidden + row) + 1);
    }
    layer.experts.push_back(expert);
  }
  return layer;
}
constexpr std::string_view gpt_oss_config =
    R"({"model_type": "gpt_oss", "hidden_size": 160, "intermediate_size": 96,
        "num_local_experts": 2, "num_experts_per_tok": 1})";

TEST_F(LoadEncoded, TakesTheBlocksOfGptOss) {
  const EncodedLayer layer = gpt_oss();
  write_model(layer.tensors, gpt_oss_config);
  const auto loaded = load_layer<float>(folder(), 0);
  expect_weights(loaded, layer);
  EXPECT_EQ(loaded.experts()[1].params().up_bias(0, 3), value_of(3, 2 * hidden + 7));
  expect_weights(unpack(load_packed<mxfp4>(folder(), 0)), layer);
}

/// The packed layer of S has the layer's very weights, and their y but for what x is rounded by.
template <class S>
void expect_kept(const fs::path& folder, const EncodedLayer& layer) {
  const auto packed = load_packed<S>(folder, 0);
  expect_weights(unpack(packed), layer);
  const Matrix<float> x = moe::testing::random_matrix<float>(9, width, 3);
  const Matrix<float> want =
      reference::forward(load_layer<float>(folder, 0), x).template cast<float>();
  Matrix<float> y(9, width);
  typename PackedLayer<S>::Scratch scratch;
  packed.forward(x, y, scratch);
  EXPECT_LT((y - want).norm(), 0.02 * want.norm());
}

TEST_F(LoadEncoded, StoragesKeepTheirOwnCodesAndScales) {
  EncodedLayer layer = layer_of(mxfp4_of);
  write_model(layer.tensors);
  expect_kept<mxfp4>(folder(), layer);
  for (const bool half_scales : {false, true}) {
    layer = layer_of(PackedIntegers{.half_scales = half_scales});
    write_model(layer.tensors);
    expect_kept<q4>(folder(), layer);
    expect_kept<q8>(folder(), layer);
  }
  layer = layer_of(PackedIntegers{.bits = 8});
  write_model(layer.tensors);
  expect_kept<q8>(folder(), layer);
}

/// Blocks of powers of two, a scale for each output, or one in all.
EncodedTensors fp8_powers(const std::string& stem, Index rows, Index cols) {
  return fp8_blocks(stem + ".weight", {rows, cols}, stem + ".scale", true);
}
EncodedTensors fp8_scaled(const std::string& stem, Index rows, Index cols, bool by_rows) {
  const std::string name = stem + ".weight_scale";
  EncodedTensors made = fp8_blocks(stem + ".weight", {rows, cols}, name);
  std::vector<float> scales;
  for (Index row = 0; row < (by_rows ? rows : 1); ++row) {
    scales.push_back(0.001f * static_cast<float>(3 + row));
  }
  made.tensors[name] =
      tensor_of("F32", by_rows ? std::vector<Index>{rows, 1} : std::vector<Index>{}, scales);
  const NewTensor& codes = made.tensors[stem + ".weight"];
  for (Index row = 0; row < rows; ++row) {
    for (Index k = 0; k < cols; ++k) {
      const auto code =
          std::to_integer<unsigned>(codes.data[static_cast<std::size_t>(row * cols + k)]);
      made.values(row, k) =
          value_of_e4m3(code) *
          static_cast<double>(scales[by_rows ? static_cast<std::size_t>(row) : 0]);
    }
  }
  return made;
}
EncodedTensors fp8_rows(const std::string& stem, Index rows, Index cols) {
  return fp8_scaled(stem, rows, cols, true);
}
EncodedTensors fp8_all(const std::string& stem, Index rows, Index cols) {
  return fp8_scaled(stem, rows, cols, false);
}

TEST_F(LoadEncoded, Fp8KeepsCodesAndScalesWhicheverWayScalesAreShared) {
  for (const EncodedLayer& layer :
       {layer_of(fp8), layer_of(fp8_powers), layer_of(fp8_rows), layer_of(fp8_all)}) {
    SCOPED_TRACE(layer.tensors.rbegin()->first);
    write_model(layer.tensors);
    expect_weights(unpack(load_packed<moe::fp8>(folder(), 0)), layer);
    Checkpoint model(folder());
    const CodedExpert<Fp8Format> coded = LayerReader(model, 0).coded_expert<Fp8Format>(1);
    const NewTensor& codes = layer.tensors.at(block + "experts.1.up_proj.weight");
    for (Index row = 0; row < hidden; ++row) {
      for (Index k = 0; k < width; ++k) {
        ASSERT_EQ(
            coded.params.up.block(row, k / 128).code[static_cast<std::size_t>(k % 128)],
            std::to_integer<std::uint8_t>(codes.data[static_cast<std::size_t>(row * width + k)]));
      }
    }
  }
}

/// The same bytes as codes of E5M2: values as halves whose low byte is 0.
EncodedTensors e5m2_rows(const std::string& stem, Index rows, Index cols) {
  EncodedTensors made = fp8_rows(stem, rows, cols);
  NewTensor& codes = made.tensors[stem + ".weight"];
  codes.dtype = "F8_E5M2";
  for (Index row = 0; row < rows; ++row) {
    for (Index k = 0; k < cols; ++k) {
      std::byte& code = codes.data[static_cast<std::size_t>(row * cols + k)];
      code &= std::byte{0xbf};  // below 2, so neither infinity nor NaN
      const auto bits = static_cast<std::uint16_t>(std::to_integer<unsigned>(code) << 8);
      made.values(row, k) = static_cast<double>(std::bit_cast<Eigen::half>(bits)) *
                            static_cast<double>(0.001f * static_cast<float>(3 + row));
    }
  }
  return made;
}

TEST_F(LoadEncoded, E5M2BecomesFloatsAndIsQuantisedAnewWhereTheStorageIsE4M3) {
  const EncodedLayer layer = layer_of(e5m2_rows);
  write_model(layer.tensors);
  const auto loaded = load_layer<double>(folder(), 0);
  expect_weights(loaded, layer);
  expect_weights(load_layer<bf16>(folder(), 0), layer);
  expect_weights(unpack(load_packed<float>(folder(), 0)), layer);
  const auto packed = unpack(load_packed<moe::fp8>(folder(), 0));
  const auto wanted = unpack(pack<moe::fp8>(loaded));
  EXPECT_EQ(packed.experts()[1].params().up, wanted.experts()[1].params().up);
  EXPECT_EQ(packed.experts()[0].params().down, wanted.experts()[0].params().down);
}

TEST_F(LoadEncoded, Fp8KeepsCodesThatAreNan) {
  EncodedLayer layer = layer_of(fp8);
  layer.tensors[block + "experts.1.up_proj.weight"].data[5 * width + 130] = std::byte{0xff};
  write_model(layer.tensors);
  const Matrix<float> up = unpack(load_packed<moe::fp8>(folder(), 0)).experts()[1].params().up;
  EXPECT_TRUE(std::isnan(up(5, 130)));
  EXPECT_EQ(up.array().isNaN().count(), 1);
}

// No half is 1.0078125 * 2^-30: the expert with that scale is quantised anew, the other is kept.
TEST_F(LoadEncoded, ScalesThatTheStorageHasNotAreQuantisedAnew) {
  EncodedLayer layer = layer_of(PackedIntegers{});
  NewTensor& scale = layer.tensors[block + "experts.0.up_proj.weight_scale"];
  scale.data[2] = std::byte{0x81};
  scale.data[3] = std::byte{0x30};
  write_model(layer.tensors);
  const auto packed = unpack(load_packed<q4>(folder(), 0));
  const auto wanted = unpack(pack<q4>(load_layer<double>(folder(), 0)));
  EXPECT_EQ(packed.experts()[0].params().up, wanted.experts()[0].params().up);
  EXPECT_EQ(packed.experts()[0].params().down, wanted.experts()[0].params().down);
  EXPECT_EQ(packed.experts()[1].params().up, rounded<float>(layer.experts[1].up));
}

TEST_F(LoadEncoded, AnyOtherStorageQuantisesTheValues) {
  const PackedIntegers integers{.zero_points = true};
  for (const EncodedLayer& layer : {layer_of(fp8), layer_of(nvfp4), layer_of(integers)}) {
    write_model(layer.tensors);
    const auto loaded = load_layer<double>(folder(), 0);
    const auto packed = unpack(load_packed<q8>(folder(), 0));
    const auto wanted = unpack(pack<q8>(loaded));
    EXPECT_EQ(packed.experts()[1].params().up, wanted.experts()[1].params().up);
    EXPECT_EQ(packed.experts()[0].params().down, wanted.experts()[0].params().down);
  }
}

TEST_F(LoadEncoded, RefusesATensorOfAWeightThatIsNobodys) {
  EncodedLayer layer = layer_of(fp8);
  for (const char* end : {"weight_scale_2", "weight_zero_point", "weight_shape", "scales"}) {
    NewTensors bad = layer.tensors;
    const std::string name = block + "experts.1.up_proj." + end;
    bad[name] = counted({1});
    expect_bad(bad, name, {"no parameter of family qwen3_moe"});
  }
}

TEST_F(LoadEncoded, RefusesTensorsThatDoNotFitTheConfig) {
  EncodedLayer layer = layer_of(mxfp4_of);
  const std::string expert = block + "experts.1.";
  const std::string name = expert + "down_proj.weight_packed";
  layer.add(mxfp4_packed(expert + "down_proj.weight", width, 2 * hidden));
  expect_bad(layer.tensors, name, {"U8 [160, 96]", "expected U8 [160, 48]"});
  layer = gpt_oss();
  layer.add(mxfp4_blocks(block + "experts.gate_up_proj", {experts, hidden, width}));
  expect_bad(layer.tensors, block + "experts.gate_up_proj_blocks",
             {"U8 [2, 96, 5, 16]", "expected U8 [2, 192, 5, 16]"}, gpt_oss_config);
}

TEST_F(LoadEncoded, RefusesBlocksOfAnotherSize) {
  const EncodedLayer layer = layer_of(fp8);
  const std::string config(qwen3_config.substr(0, qwen3_config.size() - 1));
  const auto with = [&](std::string_view size) {
    return joined(config, R"(, "quantization_config": {"weight_block_size": )", size, "}}");
  };
  write_model(layer.tensors, with("[128, 128]"));
  expect_weights(load_layer<float>(folder(), 0), layer);
  write_model(layer.tensors, with("[128, 96]"));
  expect_fault([&] { load_layer<float>(folder(), 0); }, folder() / "config.json", "",
               {"weight_block_size: 96, expected 128"});
}

// Every tensor of each convention in turn: without it, of another type, of another shape.
TEST_F(LoadEncoded, RefusesEachMissingOrUnfitTensor) {
  const PackedIntegers integers{.zero_points = true};
  for (const EncodedLayer& layer :
       {layer_of(fp8), layer_of(mxfp4_of), layer_of(nvfp4_packed), layer_of(integers)}) {
    for (const auto& [name, tensor] : layer.tensors) {
      if (name.find("experts.1.up_proj") == std::string::npos) {
        continue;
      }
      SCOPED_TRACE(name);
      // These may be left out; without zero points the values are others, but as good.
      const bool optional = name.ends_with("_shape") || name.ends_with("_zero_point") ||
                            name.ends_with("input_global_scale");
      NewTensors bad = layer.tensors;
      bad.erase(name);
      write_model(bad);
      if (!optional) {
        EXPECT_THROW(load_layer<float>(folder(), 0), FormatError);
      }
      bad = layer.tensors;
      bad[name] =
          tensor_of("C64", tensor.shape,
                    std::vector<double>(tensor.data.size() * 8 / bits(*parse_dtype(tensor.dtype))));
      write_model(bad);
      EXPECT_THROW(load_layer<float>(folder(), 0), FormatError);
      bad = layer.tensors;
      bad[name].shape.push_back(2);
      bad[name].data.resize(2 * tensor.data.size());
      write_model(bad);
      EXPECT_THROW(load_layer<float>(folder(), 0), FormatError);
    }
  }
}

}  // namespace
}  // namespace moe::io::testing::load_encoded_test
