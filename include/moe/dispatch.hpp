// SPDX-License-Identifier: Apache-2.0
// From a routing table to rows grouped by expert, and back to tokens.
#pragma once

#include "dispatch/capacity.hpp"
#include "dispatch/combine.hpp"
#include "dispatch/plan.hpp"
