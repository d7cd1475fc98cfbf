// SPDX-License-Identifier: Apache-2.0
// Comparison of matrices. Passing is what has to be proved: a NaN, an infinity or another shape
// never passes, whatever the tolerance.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <type_traits>

#include "moe/types.hpp"

namespace moe::testing {

/// How far two matrices are apart, and where.
struct MatrixError {
  bool same_shape = false;
  /// max |got - want| / max |want|, the measure of the golden tests. 0 if they are equal, infinite
  /// if only `want` is all zeros; NaN, which is below no tolerance, if the shapes differ or
  /// anything is not finite.
  double relative = std::numeric_limits<double>::quiet_NaN();
  Index row = 0, col = 0;  ///< of the worst element
  double got = 0.0, want = 0.0;
};

template <class Got, class Want>
MatrixError matrix_error(const Got& got, const Want& want) {
  MatrixError error;
  error.same_shape = got.rows() == want.rows() && got.cols() == want.cols();
  if (!error.same_shape) {
    return error;
  }
  double scale = 0.0, worst = -1.0;
  for (Index row = 0; row < want.rows(); ++row) {
    for (Index col = 0; col < want.cols(); ++col) {
      const double g = static_cast<double>(got(row, col)), w = static_cast<double>(want(row, col));
      const double difference = std::abs(g - w);
      if (!(difference <= worst)) {
        error.row = row, error.col = col, error.got = g, error.want = w;
        worst = difference;
      }
      if (!std::isfinite(g) || !std::isfinite(w)) {
        return error;  // an infinite scale would forgive everything
      }
      scale = std::max(scale, std::abs(w));
    }
  }
  error.relative = worst <= 0.0 ? 0.0 : worst / scale;
  return error;
}

/// EXPECT_TRUE(matrix_near(got, want, 1e-6)): max |got - want| <= tolerance * max |want|.
template <class Got, class Want>
::testing::AssertionResult matrix_near(const Got& got, const Want& want, double tolerance) {
  const MatrixError error = matrix_error(got, want);
  if (!error.same_shape) {
    return ::testing::AssertionFailure()
           << "got (" << got.rows() << ", " << got.cols() << "), want (" << want.rows() << ", "
           << want.cols() << ")";
  }
  if (!(error.relative <= tolerance)) {
    return ::testing::AssertionFailure()
           << "error " << error.relative << " of max |want|, tolerance " << tolerance
           << "; worst at (" << error.row << ", " << error.col << "): got " << error.got
           << ", want " << error.want;
  }
  return ::testing::AssertionSuccess();
}

/// EXPECT_TRUE(matrix_within(got, want, bound)): |got - want| <= bound, element by element. For
/// sums of products the bound is c * eps * (|A| |B|), which no cancellation makes unfair.
template <class Got, class Want, class Bound>
::testing::AssertionResult matrix_within(const Got& got, const Want& want, const Bound& bound) {
  if (got.rows() != want.rows() || got.cols() != want.cols() || bound.rows() != want.rows() ||
      bound.cols() != want.cols()) {
    return ::testing::AssertionFailure()
           << "got (" << got.rows() << ", " << got.cols() << "), want (" << want.rows() << ", "
           << want.cols() << "), bound (" << bound.rows() << ", " << bound.cols() << ")";
  }
  for (Index row = 0; row < want.rows(); ++row) {
    for (Index col = 0; col < want.cols(); ++col) {
      const double g = static_cast<double>(got(row, col)), w = static_cast<double>(want(row, col));
      const double limit = static_cast<double>(bound(row, col));
      if (!(std::abs(g - w) <= limit) || !std::isfinite(limit)) {
        return ::testing::AssertionFailure() << "at (" << row << ", " << col << "): got " << g
                                             << ", want " << w << ", allowed " << limit;
      }
    }
  }
  return ::testing::AssertionSuccess();
}

/// Two matrices have one shape and the same bits: tells -0 from 0, and a NaN equals itself.
template <class Got, class Want>
::testing::AssertionResult same_bits(const Got& got, const Want& want) {
  static_assert(std::is_same_v<typename Got::Scalar, typename Want::Scalar>);
  if (got.rows() != want.rows() || got.cols() != want.cols()) {
    return ::testing::AssertionFailure()
           << "got (" << got.rows() << ", " << got.cols() << "), want (" << want.rows() << ", "
           << want.cols() << ")";
  }
  for (Index row = 0; row < want.rows(); ++row) {
    for (Index col = 0; col < want.cols(); ++col) {
      const typename Got::Scalar g = got(row, col), w = want(row, col);
      if (std::memcmp(&g, &w, sizeof(g)) != 0) {
        return ::testing::AssertionFailure()
               << "bits differ at (" << row << ", " << col << "): got " << static_cast<double>(g)
               << ", want " << static_cast<double>(w);
      }
    }
  }
  return ::testing::AssertionSuccess();
}

}  // namespace moe::testing
