// SPDX-License-Identifier: Apache-2.0
// What moves parameters: optimisers over any layer and the user's own tensors, and schedules.
#pragma once

#include "train/adamw.hpp"
#include "train/balance_bias.hpp"
#include "train/expert_load.hpp"
#include "train/optimiser.hpp"
#include "train/schedule.hpp"
#include "train/sgd.hpp"
#include "train/trained_tensors.hpp"
