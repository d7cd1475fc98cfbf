// SPDX-License-Identifier: Apache-2.0
// What the tests of moe::compiled begin with: a layer of the library and its twin of the headers,
// which this unit compiles for an instruction set of its own, with the flags of the library's.
#pragma once

#include <gtest/gtest.h>

#include <map>
#include <string>

#include "moe/compiled.hpp"
#include "moe/layers.hpp"
#include "support/random_matrix.hpp"

namespace moe::testing {

#define MOE_TEXT_OF(x) #x
#define MOE_TEXT(x) MOE_TEXT_OF(x)
inline constexpr std::string_view own_set = MOE_TEXT(MOE_INSTRUCTION_SET);

/// Awkward sizes, and every kind of parameter.
inline MoEConfig full_config() {
  return {.d_model = 37,
          .d_ff = 53,
          .num_experts = 5,
          .top_k = 2,
          .d_out = 41,
          .expert = {.bias = true},
          .router = {.logits = {.input_jitter = 0.1, .bias = true, .noisy = true},
                     .score = Score::sigmoid,
                     .selection = {.bias = true}},
          .capacity = {.factor = 1.25},
          .shared = SharedExpertConfig{.d_ff = 19, .output_gate = true}};
}

/// All tensors of the headers' layer become random, biases too, and those of the other the same.
template <class T>
void randomise_both(MoELayer<T>& layer, compiled::MoELayer<T>& other) {
  std::uint64_t seed = 1000;
  std::map<std::string, Matrix<double>> values;
  layer.for_each_parameter([&](const std::string& name, auto& tensor) {
    using Number = typename std::remove_reference_t<decltype(tensor)>::Scalar;
    tensor = random_matrix<Number>(tensor.rows(), tensor.cols(), ++seed, 0.5);
    values[name] = tensor.template cast<double>();
  });
  other.for_each_parameter([&](const std::string& name, auto& tensor) {
    using Number = typename std::remove_reference_t<decltype(tensor)>::Scalar;
    tensor = values.at(name).template cast<Number>();
  });
}

/// A layer of the headers and one of the library, in the instruction set of this unit.
template <class T>
struct Twins {
  explicit Twins(const MoEConfig& config, std::string_view set = own_set)
      : layer(config, 1), compiled(config, 1, set) {
    randomise_both(layer, compiled);
  }

  MoELayer<T> layer;
  compiled::MoELayer<T> compiled;
};

/// y of an inference of any layer.
template <class T, class Layer>
Matrix<T> infer(const Layer& layer, const Matrix<T>& x, const CallOptions& call = {}) {
  typename Layer::Scratch scratch;
  Matrix<T> y(x.rows(), layer.d_out());
  layer.forward(x, y, scratch, call);
  return y;
}

}  // namespace moe::testing
