// SPDX-License-Identifier: Apache-2.0
// What a first program needs: layers and their parts, packed or not, losses and costs. Each folder
// has an umbrella of its own: moe/routing.hpp, and so on.
#pragma once

#include "cost.hpp"
#include "dispatch.hpp"
#include "experts.hpp"
#include "layers.hpp"
#include "losses.hpp"
#include "routing.hpp"
#include "storage.hpp"
#include "version.hpp"
