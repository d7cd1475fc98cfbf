// SPDX-License-Identifier: Apache-2.0
// Auxiliary losses: pure functions of a routing table, with their gradients.
#pragma once

#include "losses/balance.hpp"
#include "losses/distillation.hpp"
#include "losses/global_balance.hpp"
#include "losses/importance.hpp"
#include "losses/load.hpp"
#include "losses/loss.hpp"
#include "losses/selection.hpp"
#include "losses/sequence_balance.hpp"
#include "losses/sparsity.hpp"
#include "losses/variation.hpp"
#include "losses/z_loss.hpp"
