// SPDX-License-Identifier: Apache-2.0
// How far a tensor may be from a recorded one, and how far it is.
#pragma once

#include <moe/types.hpp>

#include <algorithm>
#include <cmath>
#include <string>
#include <type_traits>
#include <vector>

namespace moe::golden {

enum class Kind { output, router, loss, gradient };

/// error = max |difference| / max |reference|; of a reference that is all zero: max |difference|.
struct Error {
  std::string tensor;
  Kind kind;
  double error, bound;

  bool ok() const { return error <= bound; }  // false for NaN
};

inline bool all_ok(const std::vector<Error>& errors) {
  return !errors.empty() &&
         std::all_of(errors.begin(), errors.end(), [](const Error& e) { return e.ok(); });
}

/// The worst of one kind, NaN above all numbers.
inline double worst(const std::vector<Error>& errors, Kind kind) {
  double max = 0.0;
  for (const Error& e : errors) {
    if (e.kind == kind && !(e.error <= max)) {
      max = std::isnan(max) ? max : e.error;
    }
  }
  return max;
}

/// Largest relative errors that pass: rounding, and no more.
template <Real T>
double bound_of(Kind kind) {
  if (std::is_same_v<T, double>) {
    return 1e-11;
  }
  return kind == Kind::gradient ? 2e-5 : 5e-6;
}

template <class A, class B>
double relative_error(const A& got, const B& want) {
  double difference = 0.0, size = 0.0;
  for (Index row = 0; row < want.rows(); ++row) {
    for (Index col = 0; col < want.cols(); ++col) {
      const double a = static_cast<double>(got(row, col)), b = static_cast<double>(want(row, col));
      if (!std::isfinite(a) || !std::isfinite(b)) {
        return std::nan("");
      }
      difference = std::max(difference, std::abs(a - b));
      size = std::max(size, std::abs(b));
    }
  }
  return size > 0.0 ? difference / size : difference;
}

}  // namespace moe::golden
