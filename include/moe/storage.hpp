// SPDX-License-Identifier: Apache-2.0
// What packed weights are stored as.
#pragma once

#include "storage/bfloat16.hpp"
#include "storage/coded.hpp"
#include "storage/coded_matrix.hpp"
#include "storage/encode.hpp"
#include "storage/float.hpp"
#include "storage/fp8.hpp"
#include "storage/mxfp4.hpp"
#include "storage/panels.hpp"
#include "storage/q4.hpp"
#include "storage/q4_k.hpp"
#include "storage/q8.hpp"
