// The version of moe. CMake and the package files read it from these three lines.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#define MOE_VERSION_MAJOR 0
#define MOE_VERSION_MINOR 1
#define MOE_VERSION_PATCH 0
