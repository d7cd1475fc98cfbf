// SPDX-License-Identifier: Apache-2.0
// A layer under whatever settings Eigen was given: it agrees with the plain reference, packed and
// unpacked, and its gradients with its output.
#include <cstdio>
#include <moe/moe.hpp>
#include <moe/reference.hpp>

namespace {

using moe::Index;
using moe::Matrix;

int failures = 0;

void expect(bool holds, const char* claim) {
  if (!holds) {
    std::printf("%s: does not hold\n", claim);
    ++failures;
  }
}

template <class M>
bool near(const M& m, const Matrix<double>& expected, double tolerance) {
  return (m.template cast<double>() - expected).norm() <= tolerance * expected.norm();
}

template <moe::Real T>
Matrix<T> waves(Index rows, Index cols) {
  Matrix<T> m(rows, cols);
  for (Index i = 0; i < m.size(); ++i) {
    m.data()[i] = T(std::sin(0.7 * static_cast<double>(i)));
  }
  return m;
}

/// y is linear in all down projections together: by Euler's theorem the sum of weight times
/// gradient is <y, dy>.
template <moe::Real T>
void check_layer(double tolerance) {
  const moe::MoEConfig config{.d_model = 37, .d_ff = 53, .num_experts = 5, .top_k = 2};
  const moe::MoELayer<T> layer(config, 1);
  const Matrix<T> x = waves<T>(19, 37), dy = waves<T>(19, 37);
  Matrix<T> y(19, 37), dx(19, 37);
  const Matrix<double> expected = moe::reference::forward(layer, x);
  typename moe::MoELayer<T>::Tape tape;
  auto grads = layer.zero_grads();
  layer.forward(x, y, tape);
  layer.backward(x, dy, tape, dx, grads);
  expect(near(y, expected, tolerance), "forward agrees with the reference");

  double sum = 0;
  for (std::size_t e = 0; e < 5; ++e) {
    sum += layer.experts()[e]
               .params()
               .down.template cast<double>()
               .cwiseProduct(grads.experts[e].down.template cast<double>())
               .sum();
  }
  const double product = y.template cast<double>().cwiseProduct(dy.template cast<double>()).sum();
  expect(std::abs(sum - product) <= tolerance * static_cast<double>(y.norm() * dy.norm()),
         "gradients agree with the output");

  const auto packed = moe::pack<T>(layer);
  typename moe::PackedLayer<T>::Scratch scratch;
  const Matrix<moe::Wide<T>> wide = x.template cast<moe::Wide<T>>();
  Matrix<moe::Wide<T>> packed_y(19, 37);
  packed.forward(wide, packed_y, scratch);
  expect(near(packed_y, expected, tolerance), "the packed layer agrees with the reference");
}

}  // namespace

int main() {
  check_layer<float>(1e-5);
  check_layer<double>(1e-12);
  check_layer<moe::bf16>(2e-2);
  return failures;
}
