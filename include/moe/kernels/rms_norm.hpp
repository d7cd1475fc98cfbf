// SPDX-License-Identifier: Apache-2.0
// RMSNorm of a row (Zhang and Sennrich 2019), forward and backward: y = inverse * x * scale, where
// inverse = factor / sqrt(mean(x^2) + epsilon). Whoever norms keeps the inverse of each row; what
// else backward needs is made of it and x once more.
#pragma once

#include <cmath>

#include "finite.hpp"
#include "row_sums.hpp"

namespace moe::inline MOE_INSTRUCTION_SET::kernels {

/// What multiplies a row x (size); NaN if its squares are more than Wide<T> holds, as 0 would make
/// plausible numbers of the row. A row of zeros stays one also where epsilon is 0.
template <class T>
Wide<T> inverse_rms(const T* x, Index size, double epsilon, double factor = 1.0) {
  using W = Wide<T>;
  using std::sqrt;
  const W mean = finite_or_nan(dot(x, x, size)) / W(static_cast<double>(size));
  const W under = mean + W(epsilon);
  return under <= W(0) ? W(0) : W(factor) / sqrt(under);
}

/// y (size) = inverse * x * scale, rounded once; scale (size), or null for ones.
template <class T, class Scale, class To>
void scale_norm(const T* x, Index size, Wide<T> inverse, const Scale* scale, To* y) {
  using W = Wide<T>;
  for_lanes<W>(size, [&](auto at) {
    const auto unit = LanesOr<W>(inverse) * at.load(x);
    at.store(y, scale == nullptr ? unit : unit * at.load(scale));
  });
}

/// dx (size) = the gradient of x, from that of y, which it may be: inverse * (g - x <g, x>
/// inverse^2 / (size factor^2)), g = dy * scale.
template <class T, class Gradient, class Scale, class To>
void rms_norm_backward(const T* x, const Gradient* dy, const Scale* scale, Index size,
                       Wide<T> inverse, To* dx, double factor = 1.0) {
  using W = Wide<T>;
  const auto slope = [&](auto at) {
    const auto gradient = at.load(dy);
    return scale == nullptr ? gradient : gradient * at.load(scale);
  };
  LanesOr<W> sums(W(0));
  for_lanes<W>(size, [&](auto at) { sums = madd(slope(at), at.load(x), sums); });
  const W count = W(static_cast<double>(size) * factor * factor);
  const W along = inverse * (inverse * sum_of(sums)) / count;
  for_lanes<W>(size, [&](auto at) {
    at.store(dx, LanesOr<W>(inverse) * madd(LanesOr<W>(-along), at.load(x), slope(at)));
  });
}

/// grad (cols) += the gradient of scale: the sum of dy * inverse * x over the rows (n, cols) in
/// their order, of which skip(row) leaves some out.
template <class X, class Gradient, class W, class Skip>
void add_norm_scale_gradient(const X& x, const Gradient& dy, const W* inverse, Skip&& skip,
                             W* grad) {
  for_lanes<W>(x.cols(), [&](auto at) {
    auto sum = at.load(grad);
    for (Index row = 0; row < x.rows(); ++row) {
      if (!skip(row)) {
        const auto unit = LanesOr<W>(inverse[row]) * at.load(&x.coeffRef(row, 0));
        sum = madd(at.load(&dy.coeffRef(row, 0)), unit, sum);
      }
    }
    at.store(grad, sum);
  });
}

/// FLOPs of a row, forward and backward, and with a scale of its gradient, by the rule of cost.hpp.
constexpr Index rms_norm_flops(Index size, bool scale) { return (scale ? 4 : 3) * size + 4; }
constexpr Index rms_norm_backward_flops(Index size, bool scale) {
  return (scale ? 7 + 3 : 5) * size + 3;
}

}  // namespace moe::inline MOE_INSTRUCTION_SET::kernels
