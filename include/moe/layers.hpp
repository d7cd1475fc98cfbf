// SPDX-License-Identifier: Apache-2.0
// The pipeline: routing, dispatch, experts and combine in one layer.
#pragma once

#include "layers/coefficients.hpp"
#include "layers/depth.hpp"
#include "layers/depth_tape.hpp"
#include "layers/layer_input.hpp"
#include "layers/layer_parts.hpp"
#include "layers/layer_tape.hpp"
#include "layers/moe_layer.hpp"
#include "layers/moe_layer_backward.hpp"
#include "layers/output_norm.hpp"
#include "layers/pack_error.hpp"
#include "layers/packed_layer.hpp"
#include "layers/padding.hpp"
#include "layers/product_key_layer.hpp"
#include "layers/product_key_tape.hpp"
#include "layers/slot_rows.hpp"
#include "layers/soft_moe.hpp"
#include "layers/soft_moe_tape.hpp"
