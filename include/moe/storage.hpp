// SPDX-License-Identifier: Apache-2.0
// What packed weights are stored as.
#pragma once

#include "storage/bfloat16.hpp"
#include "storage/float.hpp"
#include "storage/panels.hpp"
