// SPDX-License-Identifier: Apache-2.0
// What a model has beside its feed-forwards: a linear map, RMSNorm, the embedding of the last
// bytes, and the loss. A token is a row; gradients of parameters are `+=`.
//
// Threads share blocks of rows whose size does not depend on how many threads there are, and sums
// over rows are shared out by columns: the bits are the same for any number of threads.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <moe/kernels/gemm.hpp>
#include <moe/types.hpp>
#include <random>
#include <vector>

namespace byte_lm {

using moe::Index;
template <class T>
using Rows = moe::Matrix<T>;

/// Bytes that come before each of N others, (N, C) row by row, and what came then, (N).
struct Batch {
  std::vector<std::uint8_t> context, target;
};

/// N(0, deviation^2).
template <class T>
void fill_normal(Rows<T>& tensor, double deviation, std::uint64_t seed) {
  std::mt19937_64 random(seed);
  std::normal_distribution<double> draw(0.0, deviation);
  tensor = tensor.unaryExpr([&](const T&) { return static_cast<T>(draw(random)); });
}

/// f(begin, size) for blocks of at most `block` of n rows.
template <class F>
void for_blocks(Index n, Index block, int threads, F&& f) {
  const Index count = (n + block - 1) / block;
  const auto run = [&](Index i) { f(i * block, (std::min)(block, n - i * block)); };
#ifdef _OPENMP
  if (threads > 1) {  // a region of one thread would allocate
#pragma omp parallel for num_threads(threads)
    for (Index i = 0; i < count; ++i) {
      run(i);
    }
    return;
  }
#endif
  for (Index i = 0; i < count; ++i) {
    run(i);
  }
  static_cast<void>(threads);
}

/// y = x W^T, by the library's products.
template <class T>
struct Linear {
  Rows<T> weight, gradient;  // (out, in)

  Linear(Index in, Index out, std::uint64_t seed) : weight(out, in), gradient(out, in) {
    fill_normal(weight, 1.0 / std::sqrt(static_cast<double>(in)), seed);
    gradient.setZero();
  }
  void forward(const Rows<T>& x, Rows<T>& y, int threads) const {
    y.resize(x.rows(), weight.rows());
    multiply_rows(x, moe::kernels::view(weight).transpose(), y, threads);
  }
  void backward(const Rows<T>& x, const Rows<T>& dy, Rows<T>& dx, int threads) {
    dx.resize(x.rows(), x.cols());
    multiply_rows(dy, moe::kernels::view(weight), dx, threads);
    constexpr Index side = 64;  // of a square of the gradient
    const auto from = moe::kernels::view(x), by = moe::kernels::view(dy).transpose();
    const Index in_squares = (weight.cols() + side - 1) / side;
    for_blocks((weight.rows() + side - 1) / side * in_squares, 1, threads, [&](Index i, Index) {
      const Index row = i / in_squares * side, col = i % in_squares * side;
      const Index rows = (std::min)(side, weight.rows() - row);
      const Index cols = (std::min)(side, weight.cols() - col);
      moe::kernels::gemm_on_stack<T>(
          by.block(row, 0, rows, x.rows()), from.block(0, col, x.rows(), cols),
          gradient.block(row, col, rows, cols), moe::kernels::Update::add);
    });
  }

 private:
  static void multiply_rows(const Rows<T>& x, moe::kernels::View<T> by, Rows<T>& y, int threads) {
    for_blocks(x.rows(), 256, threads, [&](Index begin, Index size) {
      moe::kernels::gemm_on_stack<T>(moe::kernels::view(x).block(begin, 0, size, x.cols()), by,
                                     y.middleRows(begin, size), moe::kernels::Update::assign);
    });
  }
};

/// y = x * scale / sqrt(mean(x^2) + epsilon) (Zhang and Sennrich 2019).
template <class T>
struct RmsNorm {
  Rows<T> scale, gradient;  // (1, D)
  Rows<T> inverse;          // (N, 1) of the last forward

  explicit RmsNorm(Index width) : scale(1, width), gradient(1, width) {
    scale.setOnes();
    gradient.setZero();
  }
  void forward(const Rows<T>& x, Rows<T>& y, int threads) {
    y.resize(x.rows(), x.cols());
    inverse.resize(x.rows(), 1);
    for_blocks(x.rows(), 64, threads, [&](Index begin, Index size) {
      for (Index t = begin; t < begin + size; ++t) {
        inverse(t, 0) =
            T(1) / std::sqrt(x.row(t).squaredNorm() / static_cast<T>(x.cols()) + T(1e-6));
        y.row(t).array() = x.row(t).array() * scale.row(0).array() * inverse(t, 0);
      }
    });
  }
  /// dx +=: the residual stream has a gradient already. dy is used up.
  void backward(const Rows<T>& x, Rows<T>& dy, Rows<T>& dx, int threads) {
    for (Index t = 0; t < x.rows(); ++t) {
      gradient.row(0).array() += dy.row(t).array() * x.row(t).array() * inverse(t, 0);
    }
    for_blocks(x.rows(), 64, threads, [&](Index begin, Index size) {
      for (Index t = begin; t < begin + size; ++t) {
        const T by = inverse(t, 0);
        dy.row(t).array() *= scale.row(0).array();
        const T along = dy.row(t).dot(x.row(t)) * by * by / static_cast<T>(x.cols());
        dx.row(t) += by * (dy.row(t) - along * x.row(t));
      }
    });
  }
};

/// The last C bytes as one row of C vectors.
template <class T>
struct Embedding {
  Rows<T> table, gradient;  // (256, width)

  Embedding(Index width, std::uint64_t seed) : table(256, width), gradient(256, width) {
    fill_normal(table, 1.0, seed);
    gradient.setZero();
  }
  void forward(const Batch& batch, Index context, Rows<T>& x, int threads) const {
    const Index n = static_cast<Index>(batch.target.size()), width = table.cols();
    x.resize(n, context * width);
    for_blocks(n, 64, threads, [&](Index begin, Index size) {
      for (Index i = begin * context; i < (begin + size) * context; ++i) {
        std::copy_n(&table.coeffRef(batch.context[static_cast<std::size_t>(i)], 0), width,
                    x.data() + i * width);
      }
    });
  }
  void backward(const Batch& batch, const Rows<T>& dx) {
    const Index width = table.cols(), count = static_cast<Index>(batch.context.size());
    for (Index i = 0; i < count; ++i) {
      const Eigen::Map<const Rows<T>> row(dx.data() + i * width, 1, width);
      gradient.row(batch.context[static_cast<std::size_t>(i)]) += row;
    }
  }
};

/// The mean of -log p(target) in nats of logits (N, 256), which become its gradient; `terms` (N, 1)
/// are those of each token.
template <class T>
double cross_entropy(Rows<T>& logits, const Batch& batch, Rows<T>& terms, int threads) {
  terms.resize(logits.rows(), 1);
  const T share = T(1) / static_cast<T>(logits.rows());
  for_blocks(logits.rows(), 64, threads, [&](Index begin, Index size) {
    for (Index t = begin; t < begin + size; ++t) {
      auto row = logits.row(t).array();
      const Index target = batch.target[static_cast<std::size_t>(t)];
      row -= row.maxCoeff();
      const T of_target = row(target);
      row = row.exp();
      const T sum = row.sum();
      terms(t, 0) = std::log(sum) - of_target;
      row *= share / sum;
      row(target) -= share;
    }
  });
  double sum = 0.0;
  for (Index t = 0; t < terms.rows(); ++t) {
    sum += static_cast<double>(terms(t, 0));
  }
  return sum / static_cast<double>(terms.rows());
}

}  // namespace byte_lm
