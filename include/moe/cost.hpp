// SPDX-License-Identifier: Apache-2.0
// What a layer, its tape and a whole model cost: parameters, FLOPs and bytes.
#pragma once

#include "cost/cost.hpp"
#include "cost/dense_cost.hpp"
#include "cost/depth_cost.hpp"
#include "cost/model_cost.hpp"
#include "cost/models.hpp"
#include "cost/part_cost.hpp"
#include "cost/product_key_cost.hpp"
#include "cost/soft_moe_cost.hpp"
#include "cost/tape_bytes.hpp"
#include "cost/training_bytes.hpp"
#include "cost/zero_cost.hpp"
