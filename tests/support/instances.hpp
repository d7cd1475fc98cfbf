// SPDX-License-Identifier: Apache-2.0
// The precompiled header of the tests. The classes that most tests use are compiled once, in
// instances.cpp, and not again in every program.
#pragma once

#include <gtest/gtest.h>

#include "moe/moe.hpp"

#define MOE_FOR_EACH_INSTANCE(prefix)        \
  prefix template class Router<float>;       \
  prefix template class Router<double>;      \
  prefix template class Router<bf16>;        \
  prefix template class Expert<float>;       \
  prefix template class Expert<double>;      \
  prefix template class Expert<bf16>;        \
  prefix template class DenseFfn<float>;     \
  prefix template class DenseFfn<double>;    \
  prefix template class DenseFfn<bf16>;      \
  prefix template class MoELayer<float>;     \
  prefix template class MoELayer<double>;    \
  prefix template class MoELayer<bf16>;      \
  prefix template class PackedLayer<float>;  \
  prefix template class PackedLayer<double>; \
  prefix template class PackedLayer<bf16>;

namespace moe {
MOE_FOR_EACH_INSTANCE(extern)
}
