// SPDX-License-Identifier: Apache-2.0
// The whole library but its reference, file formats and MPI: what a user includes.
#pragma once

#include "activation.hpp"
#include "combine.hpp"
#include "concepts.hpp"
#include "config.hpp"
#include "cost.hpp"
#include "dense_ffn.hpp"
#include "dispatch_plan.hpp"
#include "expert.hpp"
#include "expert_params.hpp"
#include "expert_rows.hpp"
#include "loss.hpp"
#include "moe_layer.hpp"
#include "packed_expert.hpp"
#include "packed_layer.hpp"
#include "part.hpp"
#include "router.hpp"
#include "router_params.hpp"
#include "routing_table.hpp"
#include "types.hpp"
#include "version.hpp"
