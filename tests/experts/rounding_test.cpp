// SPDX-License-Identifier: Apache-2.0
// What an expert of 16 bits adds up it rounds once, as the sum in double would be.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <concepts>

#include "../support/matrix_near.hpp"
#include "../support/random_matrix.hpp"
#include "moe/experts/expert.hpp"

namespace moe::rounding_test {
namespace {

using testing::random_matrix;
using testing::same_bits;

template <class M>
Matrix<double> in_double(const M& m) {
  return m.template cast<double>();
}

/// Each sum rounded once.
template <class T>
Matrix<T> rounded(const Matrix<double>& sums) {
  return sums.unaryExpr([](double sum) { return kernels::convert<T>(sum); });
}

/// want = x w^T + bias in double, rounded once.
template <class T>
Matrix<T> rounded_projection(const Matrix<T>& x, const Matrix<T>& w, const Matrix<T>& bias) {
  Matrix<double> sums = in_double(x) * in_double(w).transpose();
  sums.rowwise() += in_double(bias).row(0);
  return rounded<T>(sums);
}

/// Multiples of 1/4 up to 4, whose sums a float holds and 16 bits do not.
template <class T>
Matrix<T> coarse_matrix(Index rows, Index cols, std::uint64_t seed) {
  return random_matrix<double>(rows, cols, seed).unaryExpr([](double value) {
    return T(std::round(8.0 * std::clamp(value, -2.0, 2.0)) / 4.0);
  });
}

template <class T>
void expect_sums_and_biases_to_be_rounded_together(Index rows) {
  for (const bool gated : {false, true}) {
    ExpertParams<T> p;
    p.gate = gated ? coarse_matrix<T>(70, 90, 1) : Matrix<T>(0, 90);
    p.up = coarse_matrix<T>(70, 90, 2);
    p.down = coarse_matrix<T>(80, 70, 3);
    p.gate_bias = gated ? coarse_matrix<T>(1, 70, 4) : Matrix<T>(1, 0);
    p.up_bias = coarse_matrix<T>(1, 70, 5);
    p.down_bias = coarse_matrix<T>(1, 80, 6);
    const Expert<T> expert(p, {.activation = Activation::relu, .gated = gated, .bias = true});
    const Matrix<T> x = coarse_matrix<T>(rows, 90, 7);
    Matrix<T> y(rows, 80);
    typename Expert<T>::Tape tape;
    expert.forward(x, y, tape);
    const Matrix<T> up = tape.up.topLeftCorner(rows, 70), gate = tape.gate.leftCols(70 * gated);
    EXPECT_TRUE(same_bits(up, rounded_projection<T>(x, p.up, p.up_bias)));
    if (gated) {
      EXPECT_TRUE(same_bits(gate, rounded_projection<T>(x, p.gate, p.gate_bias)));
    }
    // Coarse hidden rows, so that these sums are exact, too.
    tape.hidden.topLeftCorner(rows, 70) = coarse_matrix<T>(rows, 70, 8);
    expert.forward_output(tape, 0, y, {});
    EXPECT_TRUE(same_bits(
        y, rounded_projection<T>(tape.hidden.topLeftCorner(rows, 70), p.down, p.down_bias)));
  }
}

TEST(ExpertRounding, RoundsASumAndItsBiasTogetherIn16Bits) {
  for (const Index rows : {1, 40}) {
    expect_sums_and_biases_to_be_rounded_together<bf16>(rows);
    expect_sums_and_biases_to_be_rounded_together<Eigen::half>(rows);
  }
}

/// Gradients of coarse pre-activations, so that their sums are exact in float: of up, of gate and
/// of the output gate.
template <class T>
void expect_gradients_of_an_input_to_be_rounded_together(Index rows, const ExpertConfig& config) {
  ExpertParams<T> p;
  p.gate = config.gated ? coarse_matrix<T>(70, 90, 1) : Matrix<T>(0, 90);
  p.up = coarse_matrix<T>(70, 90, 2);
  p.down = coarse_matrix<T>(80, 70, 3);
  p.output_gate = config.output_gate ? coarse_matrix<T>(1, 90, 4) : Matrix<T>(0, 90);
  const Expert<T> expert(p, config);
  typename Expert<T>::Tape tape;
  Matrix<T> y(rows, 80), dx(rows, 90);
  expert.forward(coarse_matrix<T>(rows, 90, 5), y, tape);
  const Matrix<T> dup = coarse_matrix<T>(rows, 70, 6), dgate = coarse_matrix<T>(rows, 70, 7);
  tape.dup.topLeftCorner(rows, 70) = dup;
  Matrix<double> want = in_double(dup) * in_double(p.up);
  if (config.gated) {
    tape.dgate.topLeftCorner(rows, 70) = dgate;
    want += in_double(dgate) * in_double(p.gate);
  }
  if (config.output_gate) {
    tape.dfactor.topRows(rows) = coarse_matrix<float>(rows, 1, 8);
    want += in_double(tape.dfactor.topRows(rows)) * in_double(p.output_gate);
  }
  expert.backward_input(tape, 0, dx, {});
  EXPECT_TRUE(same_bits(dx, rounded<T>(want)))
      << rows << " rows, gated " << config.gated << ", output gate " << config.output_gate;
}

TEST(ExpertRounding, RoundsTheGradientOfAnInputOnceIn16Bits) {
  for (const Index rows : {1, 40, 530}) {
    for (const bool gated : {false, true}) {
      for (const bool output_gate : {false, true}) {
        const ExpertConfig config{.gated = gated, .output_gate = output_gate};
        expect_gradients_of_an_input_to_be_rounded_together<bf16>(rows, config);
        expect_gradients_of_an_input_to_be_rounded_together<Eigen::half>(rows, config);
      }
    }
  }
}

/// A coarse hidden row and output gate, so that their products are exact in float.
template <class T, class Memory>
void expect_an_output_and_its_gate_to_be_rounded_together(Index rows) {
  ExpertParams<T> p;
  p.gate = Matrix<T>(0, 90);
  p.up = coarse_matrix<T>(70, 90, 1);
  p.down = coarse_matrix<T>(80, 70, 2);
  p.down_bias = coarse_matrix<T>(1, 80, 3);
  p.up_bias = coarse_matrix<T>(1, 70, 4);
  p.gate_bias = Matrix<T>(1, 0);
  p.output_gate = coarse_matrix<T>(1, 90, 5);
  const Expert<T> expert(
      p, {.activation = Activation::relu, .gated = false, .bias = true, .output_gate = true});
  Memory memory;
  Matrix<T> y(rows, 80);
  expert.forward(coarse_matrix<T>(rows, 90, 6), y, memory);
  const Matrix<T> hidden = coarse_matrix<T>(rows, 70, 7);
  if constexpr (std::same_as<Memory, typename Expert<T>::Tape>) {
    memory.hidden.topLeftCorner(rows, 70) = hidden;
  } else {
    memory.up.topLeftCorner(rows, 70) = hidden;
  }
  memory.factor.topRows(rows) = coarse_matrix<float>(rows, 1, 8);
  expert.forward_output(memory, 0, y, {});
  Matrix<double> want = in_double(hidden) * in_double(p.down).transpose();
  want.rowwise() += in_double(p.down_bias).row(0);
  if constexpr (std::same_as<Memory, typename Expert<T>::Tape>) {
    EXPECT_TRUE(same_bits(Matrix<T>(memory.ungated.topLeftCorner(rows, 80)), rounded<T>(want)));
  }
  want.array().colwise() *= in_double(memory.factor.topRows(rows)).col(0).array();
  EXPECT_TRUE(same_bits(y, rounded<T>(want))) << rows;
}

/// Hidden rows that their weights have met, and the bias that meets them behind.
template <class T>
void expect_an_output_and_its_weighted_bias_to_be_rounded_together(Index rows) {
  ExpertParams<T> p;
  p.gate = Matrix<T>(0, 90);
  p.up = coarse_matrix<T>(70, 90, 1);
  p.down = coarse_matrix<T>(80, 70, 2);
  p.down_bias = coarse_matrix<T>(1, 80, 3);
  p.up_bias = coarse_matrix<T>(1, 70, 4);
  p.gate_bias = Matrix<T>(1, 0);
  p.output_gate = Matrix<T>(0, 90);
  const Expert<T> expert(p, {.activation = Activation::relu, .gated = false, .bias = true});
  const Matrix<float> weight = coarse_matrix<float>(rows, 1, 5);
  const Matrix<T> hidden = coarse_matrix<T>(rows, 70, 6);
  typename Expert<T>::Scratch memory;
  memory.hidden_weight = {weight.data(), static_cast<std::size_t>(rows)};
  expert.reserve(memory, rows);
  memory.up.topLeftCorner(rows, 70) = hidden;
  Matrix<T> y(rows, 80);
  expert.forward_output(memory, 0, y, {});
  const Matrix<double> want = in_double(hidden) * in_double(p.down).transpose() +
                              in_double(weight) * in_double(p.down_bias);
  EXPECT_TRUE(same_bits(y, rounded<T>(want))) << rows;
}

TEST(ExpertRounding, RoundsAnOutputAndItsWeightedBiasOnceIn16Bits) {
  for (const Index rows : {1, 40, 530}) {
    expect_an_output_and_its_weighted_bias_to_be_rounded_together<bf16>(rows);
    expect_an_output_and_its_weighted_bias_to_be_rounded_together<Eigen::half>(rows);
  }
}

TEST(ExpertRounding, RoundsAnOutputAndItsGateOnceIn16Bits) {
  for (const Index rows : {1, 40, 530}) {
    expect_an_output_and_its_gate_to_be_rounded_together<bf16, Expert<bf16>::Scratch>(rows);
    expect_an_output_and_its_gate_to_be_rounded_together<bf16, Expert<bf16>::Tape>(rows);
    using Half = Expert<Eigen::half>;
    expect_an_output_and_its_gate_to_be_rounded_together<Eigen::half, Half::Scratch>(rows);
    expect_an_output_and_its_gate_to_be_rounded_together<Eigen::half, Half::Tape>(rows);
  }
}

}  // namespace
}  // namespace moe::rounding_test
