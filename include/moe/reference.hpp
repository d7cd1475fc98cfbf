// SPDX-License-Identifier: Apache-2.0
// The same layer in plain loops, in double: the specification.
#pragma once

#include "reference/reference.hpp"
