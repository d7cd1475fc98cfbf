// SPDX-License-Identifier: Apache-2.0
// Dense feed-forwards made of experts, where they must give what the layer gives, and students that
// learn from there.
#include "moe/train/distil.hpp"

#include <gtest/gtest.h>

#include "../support/layer_step.hpp"
#include "../support/throws.hpp"
#include "moe/losses/distillation.hpp"
#include "moe/train/adamw.hpp"
#include "moe/train/upcycle.hpp"

namespace moe::distil_test {
namespace {

using testing::make_layer;
using testing::matrix_near;
using testing::message_of;
using testing::random_matrix;

template <class Layer>
Matrix<double> output_of(const Layer& layer, const Matrix<double>& x) {
  Matrix<double> y(x.rows(), layer.d_out());
  typename Layer::Scratch scratch;
  layer.forward(x, y, scratch, {.num_threads = 1});
  return y;
}

const MoEConfig config{.d_model = 6,
                       .d_ff = 5,
                       .num_experts = 4,
                       .top_k = 2,
                       .expert = {.bias = true},
                       .shared = SharedExpertConfig{.d_ff = 3},
                       .routed_scale = 2.5};

TEST(MeanWeights, AreThoseOfTheTokens) {
  RoutingTable<double> table;
  table.expert.resize(3, 2);
  table.expert << 0, 2, 2, none, 1, 0;
  table.weight.resize(3, 2);
  table.weight << 0.6, 0.4, 1.0, 0.0, 0.7, 0.3;
  table.probs.setZero(3, 3);
  EXPECT_EQ(mean_weights(table), (std::vector<double>{0.9 / 3, 0.7 / 3, 1.4 / 3}));
  table.padding = {0, 0, 1};
  EXPECT_EQ(mean_weights(table), (std::vector<double>{0.3, 0.0, 0.7}));
}

TEST(DenseOfMean, OfCopiesIsTheirLayer) {
  Expert<double> dense({6, 5, 6}, {.bias = true}, 3);
  testing::randomise(dense.params(), 4);
  const auto layer = upcycle(dense, {.copies = 4, .chosen_copies = 2}, 5);
  const Matrix<double> x = random_matrix<double>(20, 6, 6);
  const auto mean = dense_of_mean(layer, std::vector<double>{1.0, 0.0, 3.0, 0.5});
  EXPECT_TRUE(matrix_near(output_of(mean, x), output_of(layer, x), 1e-13));
}

TEST(DenseOfMean, IsTheMeanByWeightTimesTheScaleOfTheLayer) {
  const auto layer = make_layer<double>(config, 1);
  const auto mean = dense_of_mean(layer, std::vector<double>{3.0, 0.0, 1.0, 0.0});
  const auto& a = layer.experts()[0].params();
  const auto& c = layer.experts()[2].params();
  EXPECT_TRUE(matrix_near(mean.params().up, Matrix<double>(0.75 * a.up + 0.25 * c.up), 1e-15));
  EXPECT_TRUE(matrix_near(mean.params().down, Matrix<double>(2.5 * (0.75 * a.down + 0.25 * c.down)),
                          1e-14));
  EXPECT_TRUE(matrix_near(mean.params().down_bias,
                          Matrix<double>(2.5 * (0.75 * a.down_bias + 0.25 * c.down_bias)), 1e-14));
}

TEST(DenseOfAll, IsTheLayerWhereEveryTokenHasTheSameWeights) {
  MoEConfig all = config;
  all.top_k = all.num_experts;
  auto layer = make_layer<double>(all, 1);
  layer.router().params().weight.setZero();
  const Matrix<double> x = random_matrix<double>(20, 6, 6);
  MoELayer<double>::Scratch scratch;
  Matrix<double> y(20, 6);
  layer.forward(x, y, scratch);
  const auto dense = dense_of_all(layer, mean_weights<double>(scratch.routing));
  EXPECT_EQ(dense.expert().d_ff(), 4 * 5 + 3);
  EXPECT_TRUE(matrix_near(output_of(dense, x), y, 1e-12));
}

TEST(DenseOfAll, LeavesOutExpertsWithoutWeight) {
  const auto layer = make_layer<double>(config, 1);
  const auto dense = dense_of_all(layer, std::vector<double>{0.0, 0.25, 0.0, 0.5});
  EXPECT_EQ(dense.expert().d_ff(), 2 * 5 + 3);
  const Matrix<double> x = random_matrix<double>(9, 6, 6);
  Matrix<double> want = output_of(*layer.shared(), x), y(9, 6);
  Expert<double>::Scratch scratch;
  for (const auto& [e, weight] :
       {std::pair(std::size_t{1}, 0.25), std::pair(std::size_t{3}, 0.5)}) {
    layer.experts()[e].forward(x, y, scratch);
    want += 2.5 * weight * y;
  }
  EXPECT_TRUE(matrix_near(output_of(dense, x), want, 1e-12));
}

/// The loss of a student's outputs before and behind some steps on a teacher's tokens.
template <class Student, class Teacher>
std::pair<double, double> distil(Student& student, const Teacher& teacher) {
  auto grads = zero_grads_of(student);
  AdamW<double> adam({.decay = 0.0});
  typename Student::Tape tape;
  OutputLoss<double> loss;
  Matrix<double> y(64, 6), dx(64, 6);
  std::pair<double, double> losses;
  for (std::uint64_t step = 0; step < 150; ++step) {
    const Matrix<double> x = random_matrix<double>(64, 6, 100 + step);
    student.forward(x, y, tape, {.num_threads = 1});
    output_distillation_loss<double>(y, output_of(teacher, x), {}, loss, 1);
    (step == 0 ? losses.first : losses.second) = loss.value;
    walk_params(
        student, {}, [](const ParameterName&, const auto&, auto& grad) { grad.setZero(); }, grads);
    student.backward(x, loss.gradient, tape, dx, grads);
    adam.step([&](auto&& visit) { visit_trained(visit, student, grads); },
              {.rate = 0.01, .num_threads = 1});
  }
  return losses;
}

TEST(Distillation, TeachesADenseFeedForwardThatBeginsAsAllExperts) {
  const MoELayer<double> teacher(config, 3);
  MoELayer<double>::Scratch scratch;
  const Matrix<double> x = random_matrix<double>(200, 6, 6);
  Matrix<double> y(200, 6);
  teacher.forward(x, y, scratch);
  auto student = dense_of_all(teacher, mean_weights<double>(scratch.routing));
  DenseFfn<double> fresh({6, student.expert().d_ff(), 6}, {.bias = true}, 9);
  const auto [before, behind] = distil(student, teacher);
  EXPECT_LT(behind, 0.5 * before);
  EXPECT_LT(before, 0.5 * distil(fresh, teacher).first) << "a start that knows something";
}

TEST(Distillation, TeachesARouterOfFewerExpertsToChooseAsItsTeacher) {
  const MoELayer<double> teacher(config, 3);
  const std::vector<ExpertId> group = {0, 1, 0, 1};
  auto student = merge_experts(teacher, std::span<const ExpertId>(group),
                               std::vector<double>{1.0, 1.0, 1.0, 1.0});
  Router<double>& router = student.router();
  Router<double>::Table wanted, table;
  GrowingMatrix<double> probs;
  const auto loss_on = [&](const Matrix<double>& x) {
    teacher.router().route(x, {.num_threads = 1}, wanted);
    group_probabilities<double>(wanted, group, 2, probs);
    router.route(x, {.num_threads = 1}, table);
    return router_distillation_loss<double>(table, probs, {}, 1);
  };
  const Matrix<double> held_out = random_matrix<double>(256, 6, 7);
  const double merged = loss_on(held_out).value;
  router.params().weight.setZero();
  const double unknowing = loss_on(held_out).value;
  EXPECT_LT(merged, 0.5 * unknowing) << "means of rows are a start";
  auto grads = zero_grads_of(router);
  AdamW<double> adam({.decay = 0.0});
  Matrix<double> dx(64, 6);
  for (std::uint64_t step = 0; step < 200; ++step) {
    const Matrix<double> x = random_matrix<double>(64, 6, 100 + step);
    RoutingLoss<double> loss = loss_on(x);
    grads = zero_grads_of(router);
    router.backward(x, table, loss.gradient, dx, grads);
    adam.step([&](auto&& visit) { visit_trained(visit, router, grads); },
              {.rate = 0.02, .num_threads = 1});
  }
  EXPECT_LT(loss_on(held_out).value, 1.1 * merged);
  EXPECT_LT(loss_on(held_out).value, 0.5 * unknowing);
}

TEST(Distil, RefusesLayersThatAreNoSumOfExperts) {
  MoEConfig latent = config;
  latent.latent = LatentConfig{.width = 4};
  const std::vector<double> weight(4, 0.25);
  const std::string no_sum =
      "the layer has a latent part, coefficients, a norm of its output or weights on inputs, "
      "expected a weighted sum of its experts' outputs";
  EXPECT_EQ(message_of([&] { dense_of_mean(make_layer<double>(latent, 1), weight); }),
            "dense_of_mean: " + no_sum);
  EXPECT_EQ(message_of([&] { dense_of_all(make_layer<double>(latent, 1), weight); }),
            "dense_of_all: " + no_sum);
  MoEConfig normed = config;
  normed.output_norm = OutputNormConfig{};
  EXPECT_EQ(message_of([&] { dense_of_all(make_layer<double>(normed, 1), weight); }),
            "dense_of_all: " + no_sum);
  auto experts = make_experts<double>(config, 1);
  experts[2] = Expert<double>({config.d_model, config.d_ff, config.d_model}, {.gated = false}, 1);
  const MoELayer<double> mixed(make_layer<double>(config, 1).router(), experts);
  EXPECT_EQ(message_of([&] { dense_of_mean(mixed, weight); }),
            "dense_of_mean: expert 2 is of another kind than the first");
  MoEConfig gate = config;
  gate.shared->output_gate = true;
  EXPECT_EQ(message_of([&] { dense_of_all(make_layer<double>(gate, 1), weight); }),
            "dense_of_all: experts are of several kinds or have an output gate, expected one kind "
            "without");
  const auto layer = make_layer<double>(config, 1);
  EXPECT_EQ(message_of([&] { dense_of_mean(layer, std::vector<double>(3, 1.0)); }),
            "dense_of_mean: there are 3 weights, expected one for each of 4 experts");
  EXPECT_THROW(dense_of_mean(layer, std::vector<double>(4, -1.0)), std::invalid_argument);
  EXPECT_THROW(dense_of_all(layer, std::vector<double>(4, std::nan(""))), std::invalid_argument);
}

}  // namespace
}  // namespace moe::distil_test
