// SPDX-License-Identifier: Apache-2.0
// What a layer costs: parameters, FLOPs and bytes.
#pragma once

#include "cost/cost.hpp"
