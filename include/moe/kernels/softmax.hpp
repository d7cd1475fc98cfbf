// SPDX-License-Identifier: Apache-2.0
// Softmax of a row of logits, and sigmoid. One scalar exp per element: the same bits in every
// place of a row, exactly 0 for -inf, and NaN stays NaN.
#pragma once

#include <cmath>

#include "../types.hpp"
#include "lanes.hpp"

namespace moe::inline MOE_INSTRUCTION_SET::kernels {

/// 1 / (1 + exp(-z)). The exponent is never positive, so that a small result is not lost where
/// exp(-z) overflows. For Lanes there is one in vector_math.hpp.
template <class T>
T sigmoid(const T& z) {
  using std::exp;
  const T e = exp(where(z < T(0), z, -z));
  return where(z < T(0), e, T(1)) / (T(1) + e);
}

/// The largest value, or NaN if there is one; -inf for an empty row.
template <class T>
T row_max(const T* value, Index size) {
  using std::isnan;
  T max(-Eigen::NumTraits<T>::infinity());
  for (Index i = 0; i < size; ++i) {
    if (value[i] > max || isnan(value[i])) {
      max = value[i];
    }
    if (isnan(max)) {
      break;
    }
  }
  return max;
}

/// log(sum(exp(z))), computed from the largest logit down; -inf for a row of nothing but -inf.
template <class T>
T log_sum_exp(const T* logit, Index size) {
  using std::exp;
  using std::log;
  const T max = row_max(logit, size);
  if (max == T(-Eigen::NumTraits<T>::infinity())) {
    return max;  // -inf - max would be NaN
  }
  T sum(0);
  for (Index i = 0; i < size; ++i) {
    sum += exp(logit[i] - max);
  }
  return max + log(sum);
}

/// prob = softmax(logit). The two may be the same row.
template <class T>
void softmax(const T* logit, Index size, T* prob) {
  using std::exp;
  const T max = row_max(logit, size);
  T sum(0);
  for (Index i = 0; i < size; ++i) {
    prob[i] = exp(logit[i] - max);
    sum += prob[i];
  }
  for (Index i = 0; i < size; ++i) {
    prob[i] /= sum;
  }
}

/// Turns dprob, the gradient of softmax's result prob, into that of its logits, in place:
/// dlogit_j = prob_j * (dprob_j - sum_i prob_i * dprob_i).
template <class T>
void softmax_backward(const T* prob, Index size, T* gradient) {
  T mean(0);
  for (Index i = 0; i < size; ++i) {
    mean += prob[i] * gradient[i];
  }
  for (Index i = 0; i < size; ++i) {
    gradient[i] = prob[i] * (gradient[i] - mean);
  }
}

}  // namespace moe::inline MOE_INSTRUCTION_SET::kernels
