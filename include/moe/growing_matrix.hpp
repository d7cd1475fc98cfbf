// SPDX-License-Identifier: Apache-2.0
// GrowingMatrix: a matrix that keeps its memory when it gets smaller. What has a row for each token
// or routed row is one, as a batch that grows and shrinks from call to call must not allocate.
#pragma once

#include <new>

#include "types.hpp"

namespace moe::inline MOE_INSTRUCTION_SET {

/// Owns what it shows. It is an Eigen expression like Matrix<T>, resized by assignment or by hand;
/// what it held is lost then. Memory is given back when it is destroyed or assigned a new one.
/// A function that takes const Matrix<T>& gets a copy of it: take ConstMatrixRef<T>.
template <class T>
class GrowingMatrix : public Eigen::Map<Matrix<T>> {
  using View = Eigen::Map<Matrix<T>>;

 public:
  GrowingMatrix() : View(nullptr, 0, 0) {}
  GrowingMatrix(Index rows, Index cols) : GrowingMatrix() { resize(rows, cols); }
  template <class E>
  GrowingMatrix(const Eigen::DenseBase<E>& values) : GrowingMatrix() {
    *this = values;
  }
  GrowingMatrix(const GrowingMatrix& other) : GrowingMatrix() { *this = other; }
  GrowingMatrix(GrowingMatrix&& other) noexcept : GrowingMatrix() { swap(other); }
  ~GrowingMatrix() = default;

  GrowingMatrix& operator=(const GrowingMatrix& other) {
    return *this = static_cast<const Eigen::DenseBase<View>&>(other);
  }
  GrowingMatrix& operator=(GrowingMatrix&& other) noexcept {
    swap(other);
    return *this;
  }
  template <class E>
  GrowingMatrix& operator=(const Eigen::DenseBase<E>& values) {
    if (values.size() > memory_.size()) {
      Matrix<T> grown = values;  // may read what this matrix holds
      memory_.swap(grown);
      show(values.rows(), values.cols());
    } else {
      show(values.rows(), values.cols());
      View::operator=(values);
    }
    return *this;
  }

  void resize(Index rows, Index cols) {
    if (rows * cols > memory_.size()) {
      memory_.resize(rows, cols);
    }
    show(rows, cols);
  }

  using View::setConstant, View::setOnes, View::setZero;
  GrowingMatrix& setConstant(Index rows, Index cols, const T& value) {
    resize(rows, cols);
    View::setConstant(value);
    return *this;
  }
  GrowingMatrix& setZero(Index rows, Index cols) { return setConstant(rows, cols, T(0)); }
  GrowingMatrix& setOnes(Index rows, Index cols) { return setConstant(rows, cols, T(1)); }

  /// Also the memory.
  void swap(GrowingMatrix& other) noexcept {
    const Index rows = this->rows(), cols = this->cols();
    memory_.swap(other.memory_);
    show(other.rows(), other.cols());
    other.show(rows, cols);
  }

 private:
  /// Eigen's own way to let a Map show something else.
  void show(Index rows, Index cols) {
    ::new (static_cast<View*>(this)) View(memory_.data(), rows, cols);
  }

  Matrix<T> memory_;
};

}  // namespace moe::inline MOE_INSTRUCTION_SET
