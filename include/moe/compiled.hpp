// SPDX-License-Identifier: Apache-2.0
// The layers of the library moe::compiled, in namespace moe::compiled: for programs that are
// shipped to processors unknown, and for units that shall compile in the time of Eigen alone.
#pragma once

#include "compiled/boundary.hpp"
#include "compiled/call_memory.hpp"
#include "compiled/instruction_sets.hpp"
#include "compiled/moe_layer.hpp"
#include "compiled/packed_layer.hpp"
#include "compiled/storages.hpp"
