// SPDX-License-Identifier: Apache-2.0
// Layers that were made of a dense feed-forward, against it.
#include "moe/train/upcycle.hpp"

#include <gtest/gtest.h>

#include "../support/layer_step.hpp"
#include "../support/throws.hpp"
#include "moe/train/adamw.hpp"

namespace moe::upcycle_test {
namespace {

using testing::matrix_near;
using testing::message_of;
using testing::random_matrix;

template <class T>
Expert<T> dense(const ExpertConfig& config) {
  Expert<T> expert({6, 12, 5}, config, 1);
  testing::randomise(expert.params(), 2);
  return expert;
}

template <class T>
Matrix<T> output_of(const Expert<T>& expert, const Matrix<T>& x) {
  typename Expert<T>::Scratch scratch;
  Matrix<T> y(x.rows(), expert.d_out());
  expert.forward(x, y, scratch);
  return y;
}
template <class T>
Matrix<T> output_of(const MoELayer<T>& layer, const Matrix<T>& x) {
  typename MoELayer<T>::Scratch scratch;
  Matrix<T> y(x.rows(), layer.d_out());
  layer.forward(x, y, scratch);
  return y;
}

TEST(Upcycle, GivesTheDenseOutputOfCopiesAndOfSlices) {
  const Matrix<double> x = random_matrix<double>(40, 6, 3);
  for (const ExpertConfig& kind :
       {ExpertConfig{}, ExpertConfig{.activation = Activation::relu_squared, .gated = false},
        ExpertConfig{.activation = Activation::gelu_erf, .bias = true, .output_gate = true}}) {
    const Expert<double> expert = dense<double>(kind);
    for (const Index slices : {1, 3, 4}) {
      for (const Index chosen : {1, 2, 4}) {
        UpcycleConfig config{.copies = 4, .slices = slices, .chosen_copies = chosen};
        config.router.weight.renormalise = true;
        const MoELayer<double> layer = upcycle(expert, config, 7);
        EXPECT_EQ(layer.num_experts(), 4 * slices);
        EXPECT_TRUE(matrix_near(output_of(layer, x), output_of(expert, x), 1e-12))
            << slices << ' ' << chosen;
      }
    }
  }
}

TEST(Upcycle, GivesATokenWholeCopies) {
  const auto layer = upcycle(dense<float>({}), {.copies = 5, .slices = 3, .chosen_copies = 2}, 7);
  MoELayer<float>::Scratch scratch;
  const Matrix<float> x = random_matrix<float>(30, 6, 3);
  Matrix<float> y(30, 5);
  layer.forward(x, y, scratch);
  for (Index t = 0; t < 30; ++t) {
    Index sum[5] = {};
    for (Index k = 0; k < 6; ++k) {
      ++sum[scratch.routing.expert(t, k) / 3];
    }
    for (const Index slices : sum) {
      EXPECT_TRUE(slices == 0 || slices == 3);
    }
  }
}

TEST(Upcycle, TellsCopiesApartByNoiseOfTheSizeThatItIsGiven) {
  const Expert<double> expert = dense<double>({});
  const auto layer = upcycle(expert, {.copies = 3, .noise = 1e-2}, 7);
  const auto share = [&](std::size_t e) {
    return (layer.experts()[e].params().up - expert.params().up).norm() / expert.params().up.norm();
  };
  for (std::size_t e = 0; e < 3; ++e) {
    EXPECT_GT(share(e), 0.7e-2);
    EXPECT_LT(share(e), 1.3e-2);
  }
  EXPECT_FALSE(layer.experts()[0].params().up.isApprox(layer.experts()[1].params().up, 1e-6));
}

TEST(Upcycle, TrainsOnFromThere) {
  const Expert<float> expert = dense<float>({});
  auto layer = upcycle(expert, {.copies = 4, .noise = 1e-3}, 7);
  const Matrix<float> x = random_matrix<float>(64, 6, 3), wanted = random_matrix<float>(64, 5, 4);
  Matrix<float> y(64, 5), dx(64, 6);
  MoELayer<float>::Tape tape;
  auto grads = layer.zero_grads();
  AdamW<float> adam;
  float first = 0, loss = 0;
  for (int step = 0; step < 60; ++step) {
    layer.for_each_parameter([](const auto&, auto&, auto& g) { g.setZero(); }, grads);
    layer.forward(x, y, tape);
    loss = (y - wanted).squaredNorm();
    first = step == 0 ? loss : first;
    layer.backward(x, Matrix<float>(2 * (y - wanted)), tape, dx, grads);
    adam.step([&](auto&& visit) { visit_trained(visit, layer, grads); }, {.rate = 0.01});
  }
  EXPECT_LT(loss, first / 2);
}

TEST(Upcycle, RefusesWidthsThatItCannotSlice) {
  EXPECT_EQ(message_of([] { upcycle(dense<float>({}), {.slices = 5}, 1); }),
            "upcycle: slices = 5, expected a divisor of the width 12");
  EXPECT_EQ(message_of([] { upcycle(dense<float>({}), {.copies = 2, .chosen_copies = 3}, 1); }),
            "UpcycleConfig: chosen_copies = 3, expected in [1, copies = 2]");
  EXPECT_EQ(message_of([] { upcycle(dense<float>({}), {.noise = -1.0}, 1); }),
            "UpcycleConfig: noise = -1, expected finite and at least 0");
}

}  // namespace
}  // namespace moe::upcycle_test
