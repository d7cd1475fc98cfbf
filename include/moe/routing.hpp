// SPDX-License-Identifier: Apache-2.0
// From tokens to a routing table: the gate, the steps of its rules, the routers.
#pragma once

#include "routing/concepts.hpp"
#include "routing/cosine_gate.hpp"
#include "routing/expert_table.hpp"
#include "routing/gate.hpp"
#include "routing/gate_params.hpp"
#include "routing/gated_router.hpp"
#include "routing/gated_table.hpp"
#include "routing/groups.hpp"
#include "routing/noise.hpp"
#include "routing/norm_gate.hpp"
#include "routing/router.hpp"
#include "routing/score.hpp"
#include "routing/selection.hpp"
#include "routing/softcap.hpp"
#include "routing/top_k.hpp"
#include "routing/two_layer_gate.hpp"
#include "routing/weights.hpp"
