// SPDX-License-Identifier: Apache-2.0
// A layer in plain loops, in double: the specification.
#pragma once

#include "reference/balanced_assignment.hpp"
#include "reference/capacity.hpp"
#include "reference/coefficients.hpp"
#include "reference/depth.hpp"
#include "reference/dynamic_top_k.hpp"
#include "reference/expert.hpp"
#include "reference/expert_choice.hpp"
#include "reference/gate.hpp"
#include "reference/latent.hpp"
#include "reference/layer.hpp"
#include "reference/relu_routing.hpp"
#include "reference/router.hpp"
#include "reference/second_expert.hpp"
#include "reference/sequence_top_k.hpp"
#include "reference/sinkhorn.hpp"
#include "reference/soft_moe.hpp"
#include "reference/sparse_mixer.hpp"
#include "reference/two_level.hpp"
#include "reference/uniform_choice.hpp"
#include "reference/zero.hpp"
