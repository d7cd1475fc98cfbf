// SPDX-License-Identifier: Apache-2.0
// Auxiliary losses: pure functions of a routing table, with their gradients.
#pragma once

#include "losses/loss.hpp"
