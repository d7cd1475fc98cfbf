// SPDX-License-Identifier: Apache-2.0
// Softmax and sigmoid of a row of logits, and their backward. An element is computed the same in
// every place of a row. A sum over the row adds up each lane in order, then the lanes, so that its
// bits depend on the row alone, and -inf at its end changes nothing. Exactly 0 for -inf, and NaN
// stays NaN.
//
// flatten: GCC would leave exp a function, and pass it each vector through memory.
#pragma once

#include <cmath>

#include "vector_math.hpp"

namespace moe::inline MOE_INSTRUCTION_SET::kernels {

template <class T>
T minus_infinity() {
  return T(-Eigen::NumTraits<T>::infinity());
}

/// The largest element, -inf of none. If one is NaN, any of them.
template <class T>
[[gnu::flatten]] T row_max(const T* value, Index size) {
  const T lowest = minus_infinity<T>();
  LanesOr<T> largest(lowest);
  for_lanes<T>(size, [&](auto at) { largest = larger(largest, at.load(value, lowest)); });
  return max_of(largest);
}

/// log(sum(exp(z))), computed from the largest logit down; -inf for a row of nothing but -inf.
template <class T>
[[gnu::flatten]] T log_sum_exp(const T* logit, Index size) {
  using std::exp, std::log;
  const T max = row_max(logit, size), lowest = minus_infinity<T>();
  const T shift = max > lowest ? max : T(0);  // -inf - -inf would be NaN
  LanesOr<T> sum(T(0));
  for_lanes<T>(size, [&](auto at) { sum = sum + exp(at.load(logit, lowest) - LanesOr<T>(shift)); });
  return shift + log(sum_of(sum));
}

/// prob = softmax(logit). The two may be the same row.
template <class T>
[[gnu::flatten]] void softmax(const T* logit, Index size, T* prob) {
  using std::exp;
  const LanesOr<T> largest(row_max(logit, size));
  LanesOr<T> sum(T(0));
  for_lanes<T>(size, [&](auto at) {
    const auto e = exp(at.load(logit, minus_infinity<T>()) - largest);
    at.store(prob, e);
    sum = sum + e;
  });
  const LanesOr<T> total(sum_of(sum));
  for_lanes<T>(size, [&](auto at) { at.store(prob, at.load(prob) / total); });
}

/// Turns dprob, the gradient of softmax's result prob, into that of its logits, in place:
/// dlogit_j = prob_j * (dprob_j - sum_i prob_i * dprob_i).
template <class T>
[[gnu::flatten]] void softmax_backward(const T* prob, Index size, T* gradient) {
  LanesOr<T> sum(T(0));
  for_lanes<T>(size, [&](auto at) { sum = madd(at.load(prob), at.load(gradient), sum); });
  const LanesOr<T> mean(sum_of(sum));
  for_lanes<T>(size,
               [&](auto at) { at.store(gradient, at.load(prob) * (at.load(gradient) - mean)); });
}

/// prob = sigmoid(logit), element by element. The two may be the same row.
template <class T>
[[gnu::flatten]] void sigmoid(const T* logit, Index size, T* prob) {
  for_lanes<T>(size, [&](auto at) { at.store(prob, sigmoid(at.load(logit))); });
}

/// Turns dprob, the gradient of sigmoid's result prob, into that of its logits, in place.
template <class T>
[[gnu::flatten]] void sigmoid_backward(const T* prob, Index size, T* gradient) {
  for_lanes<T>(size, [&](auto at) {
    const auto p = at.load(prob);
    at.store(gradient, at.load(gradient) * (p * (LanesOr<T>(T(1)) - p)));
  });
}

}  // namespace moe::inline MOE_INSTRUCTION_SET::kernels
