// SPDX-License-Identifier: Apache-2.0
// The vocabulary of every other header: sizes, expert numbers and row-major matrices.
//
// Letters in comments: N tokens, D model width, F hidden width, E experts, K choices per token,
// S routed rows (S <= N * K, grouped by expert). A matrix is (rows, cols), row-major.
// "slot" is a row in expert order, "token" a row in input order, "choice" one of a token's K.
#pragma once

#include <Eigen/Core>
#include <concepts>
#include <cstddef>
#include <cstdint>

#include "instruction_set.hpp"

namespace moe::inline MOE_INSTRUCTION_SET {

using Index = Eigen::Index;
static_assert(sizeof(Index) == sizeof(std::ptrdiff_t),
              "moe counts elements, rows and bytes in Eigen::Index: leave "
              "EIGEN_DEFAULT_DENSE_INDEX_TYPE as it is, std::ptrdiff_t");
using ExpertId = std::int32_t;

/// The expert of a choice that is not used: a router that chose fewer than K, or a masked token.
inline constexpr ExpertId none = -1;

/// A real scalar that Eigen knows: float, double, half, bfloat16, or one that counts or records.
template <class T>
concept Real =
    std::copyable<T> && std::constructible_from<T, double> && !Eigen::NumTraits<T>::IsInteger &&
    !Eigen::NumTraits<T>::IsComplex && requires(T a, T b) {
  { a + b } -> std::convertible_to<T>;
  { a* b } -> std::convertible_to<T>;
  { a / b } -> std::convertible_to<T>;
  { a < b } -> std::convertible_to<bool>;
};

using bf16 = Eigen::bfloat16;

template <class T>
using Matrix = Eigen::Matrix<T, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

/// A view of row-major memory, any row stride; nothing is copied.
template <class T>
using MatrixRef = Eigen::Ref<Matrix<T>>;

/// A read-only view. Eigen silently makes a copy if it is given a column-major matrix or an
/// expression: correct, but it allocates.
template <class T>
using ConstMatrixRef = Eigen::Ref<const Matrix<T>>;

template <class T>
struct WideOf {
  using type = T;
};
template <>
struct WideOf<Eigen::half> {
  using type = float;
};
template <>
struct WideOf<bf16> {
  using type = float;
};

/// What routing and long sums are computed in: T, but at least float.
template <class T>
using Wide = typename WideOf<T>::type;

namespace detail {

/// Whether a setting has exactly that value; == of them is what -Wfloat-equal warns of.
constexpr bool equals(double setting, double value) { return setting <= value && setting >= value; }

}  // namespace detail

}  // namespace moe::inline MOE_INSTRUCTION_SET
