// SPDX-License-Identifier: Apache-2.0
// A storage that is not of moe: integers of 8 bits with a scale for each output. What is written
// here is all that a storage needs to run on the tile of float.
#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>

#include "../support/layer_step.hpp"
#include "moe/layers/packed_layer.hpp"
#include "moe/reference.hpp"

namespace moe {

struct Bytes {};  ///< names the storage

template <>
struct WideOf<Bytes> {
  using type = float;
};

template <>
class PackedMatrix<Bytes> : public PanelLayout<kernels::RegisterTile<float>> {
  using Tile = kernels::RegisterTile<float>;

 public:
  using Input = float;
  using Precision = float;
  using Weight = float;
  static constexpr Index buffer_size = Tile::depth * Tile::cols;

  PackedMatrix() = default;
  template <class T>
  PackedMatrix(std::initializer_list<const Matrix<T>*> weights)
      : PanelLayout(weights.size(), (*weights.begin())->rows(), (*weights.begin())->cols()),
        codes_(Matrix<std::int8_t>::Zero(num_panels() * depth(), cols)),
        scales_(Matrix<float>::Zero(num_panels(), cols)) {
    Index first_col = 0;
    for (const Matrix<T>* weight : weights) {
      for (Index out = 0; out < num_outputs(); ++out) {
        const Index panel = out / share(), col = first_col + out % share();
        const auto scale = static_cast<float>(weight->row(out).cwiseAbs().maxCoeff()) / 127;
        scales_(panel, col) = scale;
        for (Index k = 0; k < width() && scale > 0; ++k) {
          codes_(panel * depth() + k, col) =
              static_cast<std::int8_t>(std::lround(static_cast<float>((*weight)(out, k)) / scale));
        }
      }
      first_col += share();
    }
  }

  Matrix<float> unpack(Index number) const {
    Matrix<float> weight(num_outputs(), width());
    for (Index out = 0; out < num_outputs(); ++out) {
      const Index panel = out / share(), col = number * share() + out % share();
      for (Index k = 0; k < width(); ++k) {
        weight(out, k) = scales_(panel, col) * codes_(panel * depth() + k, col);
      }
    }
    return weight;
  }

  std::size_t bytes() const {
    return static_cast<std::size_t>(codes_.size()) +
           static_cast<std::size_t>(scales_.size()) * sizeof(float);
  }

  const float* panel(Index number, Index k, Index size, float* buffer) const {
    const auto codes = codes_.middleRows(number * depth() + k, size).cast<float>().array();
    Eigen::Map<Matrix<float>>(buffer, size, cols) = codes.rowwise() * scales_.row(number).array();
    return buffer;
  }

  std::span<const std::byte> source(Index number, Index k, Index size) const {
    return std::as_bytes(std::span(&codes_.coeffRef(number * depth() + k, 0),
                                   static_cast<std::size_t>(size * cols)));
  }

 private:
  Matrix<std::int8_t> codes_;  // (panels * depth, cols)
  Matrix<float> scales_;       // (panels, cols)
};

}  // namespace moe

namespace moe::own_storage_test {
namespace {

using testing::make_layer;
using testing::random_matrix;
using testing::same_bits;

static_assert(Storage<Bytes>);

/// Wide enough for two blocks of k, and narrow.
std::vector<MoEConfig> configs() {
  MoEConfig narrow{.d_model = 37, .d_ff = 53, .num_experts = 5, .top_k = 2};
  narrow.expert.bias = true;
  narrow.shared = SharedExpertConfig{.d_ff = 71, .output_gate = true};
  const MoEConfig wide{
      .d_model = kernels::RegisterTile<float>::depth + 9, .d_ff = 20, .num_experts = 2, .top_k = 1};
  return {narrow, wide};
}

// Gate, up and down fill their panels, so there are only the codes, and 4 bytes for each output.
TEST(OwnStorage, TakesAByteForAWeightAndFourForAScale) {
  const MoEConfig config{.d_model = 128, .d_ff = 256, .num_experts = 3, .top_k = 1};
  EXPECT_EQ(packed_bytes<Bytes>(pack<Bytes>(make_layer<float>(config, 7))),
            3u * (3 * 128 * 256 + 4 * (2 * 256 + 128)));
}

TEST(OwnStorage, IsNearTheLayerThatItWasMadeOf) {
  for (const MoEConfig& config : configs()) {
    const MoELayer<float> layer = make_layer<float>(config, 7);
    const auto packed = pack<Bytes>(layer);
    const Matrix<float> x = random_matrix<float>(40, config.d_model, 3);
    Matrix<float> got(40, packed.d_out());
    decltype(packed)::Scratch scratch;
    packed.forward(x, got, scratch);
    EXPECT_TRUE(testing::matrix_near(got, reference::forward(layer, x), 0.05));
  }
}

// The unpacked layer computes with the same weights, in the same order.
TEST(OwnStorage, GivesTheBitsOfTheLayerThatItUnpacksTo) {
  for (const MoEConfig& config : configs()) {
    const auto packed = pack<Bytes>(make_layer<float>(config, 7));
    const MoELayer<float> unpacked = unpack<Bytes>(packed);
    decltype(packed)::Scratch scratch;
    MoELayer<float>::Scratch unpacked_scratch;
    for (const Index tokens : {0, 1, 2, 7, 300}) {
      const Matrix<float> x = random_matrix<float>(tokens, config.d_model, 3);
      Matrix<float> got(tokens, packed.d_out()), want = got;
      unpacked.forward(x, want, unpacked_scratch);
      for (const int threads : {1, 3}) {
        detail::with_team(threads,
                          [&] { packed.forward(x, got, scratch, {.num_threads = threads}); });
        EXPECT_TRUE(same_bits(got, want)) << tokens << " tokens, " << threads << " threads";
      }
    }
  }
}

}  // namespace
}  // namespace moe::own_storage_test
