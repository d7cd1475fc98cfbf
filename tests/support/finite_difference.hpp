// SPDX-License-Identifier: Apache-2.0
// Analytic gradients against central differences, in double. Needs no GoogleTest.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <string_view>

#include "moe/types.hpp"
#include "thorough.hpp"

namespace moe::testing {

/// df/dx of f(), which reads x through a reference, by differences of the fourth order: with this
/// step both the truncated terms and the rounding of f stay near 1e-11. A kink of f within
/// 2e-4 * max(|x|, 1) of x spoils it.
template <class F>
double derivative(F&& f, double& x) {
  const double at = x, step = 1e-4 * std::max(1.0, std::abs(at));
  const auto difference = [&](double h) {
    x = at + h;
    const double right = f();
    x = at - h;
    const double left = f();
    x = at;
    return right - left;
  };
  return (8.0 * difference(step) - difference(2.0 * step)) / (12.0 * step);
}

/// max |fd - gradient| / max |gradient|, fd the differences of f() over the elements of parameter,
/// which f reads (over some of them where tests are not thorough); infinite if the shapes differ or
/// anything is NaN. A gradient below `small` is measured against `small`.
template <class F, class M>
double gradient_error(F&& f, M& parameter, const ConstMatrixRef<double>& gradient,
                      double small = 1e-3) {
  if (parameter.rows() != gradient.rows() || parameter.cols() != gradient.cols()) {
    return std::numeric_limits<double>::infinity();
  }
  if (!gradient.allFinite()) {
    return std::numeric_limits<double>::infinity();
  }
  double worst = 0.0;
  for (Index i = 0; i < parameter.size(); i += element_step(parameter.size())) {
    const double error = std::abs(derivative(f, parameter.data()[i]) - gradient.data()[i]);
    if (!std::isfinite(error)) {
      return std::numeric_limits<double>::infinity();
    }
    worst = std::max(worst, error);
  }
  return parameter.size() == 0 ? 0.0 : worst / std::max(small, gradient.cwiseAbs().maxCoeff());
}

/// The worst of a whole parameter list, tensor by tensor. f() reads the parameters.
template <class P, class F>
double gradient_error_of_list(F&& f, P& parameters, const P& gradients, double small = 1e-3) {
  double worst = 0.0;
  P::for_each(
      [&](std::string_view, Matrix<double>& parameter, const Matrix<double>& gradient) {
        worst = std::max(worst, gradient_error(f, parameter, gradient, small));
      },
      parameters, gradients);
  return worst;
}

}  // namespace moe::testing
