// SPDX-License-Identifier: Apache-2.0
// The storages of packed weights, for tests that hold of each of them: a new one has its place
// here.
#pragma once

#include <gtest/gtest.h>

#include "moe/storage.hpp"

namespace moe::testing {

using AllStorages = ::testing::Types<  //
    float, double, bf16,               //
    q8, q4, q4_k, mxfp4, fp8>;

/// Of integers with a scale for each block.
using CodedStorages = ::testing::Types<q8, q4, q4_k, mxfp4>;

/// Of panels that are the same bytes on every instruction set.
using FileStorages = ::testing::Types<q8, q4, q4_k, mxfp4, fp8>;

/// Of tokens in float.
using FloatStorages = ::testing::Types<  //
    float, bf16,                         //
    q8, q4, q4_k, mxfp4, fp8>;

}  // namespace moe::testing
