// SPDX-License-Identifier: Apache-2.0
// What a trainer has beside the layer: optimisers over any layer and tensors of the user's own,
// schedules, scales of initialisation, balance by bias, and layers made of dense ones or of fewer
// experts.
#pragma once

#include "train/adamw.hpp"
#include "train/balance_bias.hpp"
#include "train/distil.hpp"
#include "train/expert_load.hpp"
#include "train/initialise.hpp"
#include "train/merge.hpp"
#include "train/optimiser.hpp"
#include "train/prune.hpp"
#include "train/revive.hpp"
#include "train/schedule.hpp"
#include "train/sgd.hpp"
#include "train/trained_tensors.hpp"
#include "train/upcycle.hpp"
