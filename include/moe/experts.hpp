// SPDX-License-Identifier: Apache-2.0
// What computes the routed rows: feed-forwards, and sets of experts.
#pragma once

#include "experts/activation.hpp"
#include "experts/activation_rows.hpp"
#include "experts/dense.hpp"
#include "experts/dense_ffn.hpp"
#include "experts/each_expert.hpp"
#include "experts/expert.hpp"
#include "experts/expert_backward.hpp"
#include "experts/expert_list.hpp"
#include "experts/expert_params.hpp"
#include "experts/ffn_experts.hpp"
#include "experts/ffn_shape.hpp"
#include "experts/gather.hpp"
#include "experts/latent.hpp"
#include "experts/packed_call.hpp"
#include "experts/packed_expert.hpp"
#include "experts/packed_experts.hpp"
#include "experts/pair.hpp"
#include "experts/projection.hpp"
#include "experts/zero.hpp"
