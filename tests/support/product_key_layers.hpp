// SPDX-License-Identifier: Apache-2.0
// Layers of product keys for their tests.
#pragma once

#include "moe/layers/product_key_layer.hpp"
#include "sequences.hpp"

namespace moe::testing::product_keys {

using namespace sequences;
using testing::run_step;

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

}  // namespace moe::testing::product_keys
