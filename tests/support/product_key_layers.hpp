// SPDX-License-Identifier: Apache-2.0
// Layers of product keys for their tests, and a step of one.
#pragma once

#include "moe/layers/product_key_layer.hpp"
#include "sequences.hpp"

namespace moe::testing::product_keys {

using namespace sequences;

inline constexpr KeyReading all_readings[] = {KeyReading::per_token, KeyReading::across_batch};

inline ProductKeyLayerConfig small_config(KeyReading reading = KeyReading::per_token) {
  return {.d_model = 5,
          .keys = {.num_keys = 4, .top_k = 3, .reading = reading},
          .d_out = 4,
          .shared_d_ff = 6};
}

/// A layer whose tensors are all random.
template <Real T>
ProductKeyLayer<T> make_layer(const ProductKeyLayerConfig& config) {
  ProductKeyLayer<T> layer(config, 1);
  randomise(layer.router().params(), 8, 1.5);
  randomise(layer.experts().params(), 9, 0.8);
  if (layer.shared()) {
    randomise(layer.shared()->params(), 20);
  }
  return layer;
}

template <Real T>
Matrix<T> forward(const ProductKeyLayer<T>& layer, const Matrix<T>& x,
                  const CallOptions& call = {}) {
  ProductKeyScratch<T> scratch;
  Matrix<T> y(x.rows(), layer.d_out());
  layer.forward(x, y, scratch, call);
  return y;
}

template <Real T>
Step<ProductKeyLayer<T>, T> run_step(const ProductKeyLayer<T>& layer, const Matrix<T>& x,
                                     const CallOptions& call = {}) {
  ProductKeyTape<T> tape;
  Step<ProductKeyLayer<T>, T> step{random_matrix<T>(x.rows(), layer.d_out(), 42),
                                   Matrix<T>(x.rows(), layer.d_out()),
                                   Matrix<T>(x.rows(), layer.d_in()), layer.zero_grads()};
  detail::with_team(detail::num_threads(call.num_threads), [&] {
    layer.forward(x, step.y, tape, call);
    layer.backward(x, step.dy, tape, step.dx, step.grads);
  });
  return step;
}

}  // namespace moe::testing::product_keys
