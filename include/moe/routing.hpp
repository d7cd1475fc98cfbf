// SPDX-License-Identifier: Apache-2.0
// From tokens to a routing table: the gate, the steps of its rules, the routers.
#pragma once

#include "routing/assignment.hpp"
#include "routing/balanced_assignment.hpp"
#include "routing/concepts.hpp"
#include "routing/dynamic_top_k.hpp"
#include "routing/expert_choice.hpp"
#include "routing/gate.hpp"
#include "routing/gate_params.hpp"
#include "routing/gated_router.hpp"
#include "routing/gated_table.hpp"
#include "routing/insert_choice.hpp"
#include "routing/linear_router.hpp"
#include "routing/noise.hpp"
#include "routing/relu_routing.hpp"
#include "routing/router.hpp"
#include "routing/score.hpp"
#include "routing/second_expert.hpp"
#include "routing/selection.hpp"
#include "routing/sparse_mixer.hpp"
#include "routing/top_k.hpp"
#include "routing/weights.hpp"
