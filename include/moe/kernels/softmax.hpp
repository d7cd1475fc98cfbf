// SPDX-License-Identifier: Apache-2.0
// Softmax and sigmoid of a row of logits. One scalar exp per element: the same bits in every
// place of a row, exactly 0 for -inf, and NaN stays NaN.
#pragma once

#include <cmath>

#include "../types.hpp"

namespace moe::kernels {

template <class T>
T sigmoid(const T& z) {
  using std::exp;
  return T(1) / (T(1) + exp(-z));
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

/// log(sum(exp(z))), computed from the largest logit down.
template <class T>
T log_sum_exp(const T* logit, Index size) {
  using std::exp;
  using std::log;
  const T max = row_max(logit, size);
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

}  // namespace moe::kernels
