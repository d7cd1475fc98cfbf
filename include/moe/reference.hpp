// SPDX-License-Identifier: Apache-2.0
// A layer in plain loops, in double: the specification.
#pragma once

#include "reference/capacity.hpp"
#include "reference/expert.hpp"
#include "reference/latent.hpp"
#include "reference/layer.hpp"
#include "reference/router.hpp"
#include "reference/zero.hpp"
