// SPDX-License-Identifier: Apache-2.0
// The products, vector math and selections under every step: free functions.
#pragma once

#include "kernels/bfloat16.hpp"
#include "kernels/cast_params.hpp"
#include "kernels/convert.hpp"
#include "kernels/few_rows.hpp"
#include "kernels/gemm.hpp"
#include "kernels/gemm_memory.hpp"
#include "kernels/gemm_narrow.hpp"
#include "kernels/gemm_transposed.hpp"
#include "kernels/half.hpp"
#include "kernels/lanes.hpp"
#include "kernels/mask.hpp"
#include "kernels/multiply_panels.hpp"
#include "kernels/pack.hpp"
#include "kernels/register_tile.hpp"
#include "kernels/row_sums.hpp"
#include "kernels/softmax.hpp"
#include "kernels/topk.hpp"
#include "kernels/transpose.hpp"
#include "kernels/vector_math.hpp"
#include "kernels/view.hpp"
