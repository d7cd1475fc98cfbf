// SPDX-License-Identifier: Apache-2.0
// From tokens to a routing table: the gate, the steps of its rules, the routers.
#pragma once

#include "routing/noise.hpp"
#include "routing/router.hpp"
#include "routing/router_params.hpp"
#include "routing/weights.hpp"
