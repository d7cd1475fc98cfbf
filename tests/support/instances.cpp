// SPDX-License-Identifier: Apache-2.0
// The code of the classes that instances.hpp promises to the tests.
#include "instances.hpp"

namespace moe {
MOE_FOR_EACH_INSTANCE()
}
