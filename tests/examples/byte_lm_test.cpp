// SPDX-License-Identifier: Apache-2.0
// examples/byte_lm: the gradients of its model, its data, and a run.
#include <gtest/gtest.h>

#include "../../examples/byte_lm/data.hpp"
#include "../../examples/byte_lm/model.hpp"
#include "../../examples/byte_lm/specialisation.hpp"
#include "../support/count_allocations.hpp"
#include "../support/finite_difference.hpp"

namespace byte_lm::byte_lm_test {
namespace {

using moe::load_balancing_loss, moe::Matrix, moe::z_loss, moe::testing::gradient_error;

Batch some_batch(Index tokens, Index context) {
  std::mt19937 random(5);
  Batch batch;
  for (Index i = 0; i < tokens * context; ++i) {
    batch.context.push_back(static_cast<std::uint8_t>(random() % 256));
  }
  for (Index i = 0; i < tokens; ++i) {
    batch.target.push_back(static_cast<std::uint8_t>(random() % 256));
  }
  return batch;
}

ModelConfig tiny(Index num_experts) {
  return {.context = 3,
          .embedding = 2,
          .blocks = 2,
          .feed_forward = {.d_model = 4, .d_ff = 3, .num_experts = num_experts, .top_k = 2}};
}

class ByteLmModel : public ::testing::TestWithParam<Index> {};

TEST_P(ByteLmModel, GradientsAreTheDerivativesOfAllLosses) {
  Model<double> model(tiny(GetParam()), 3);
  const Batch batch = some_batch(7, 3);
  const RouterLosses losses{.balance = 0.3, .z = 0.2};
  const auto loss = [&] {
    double sum = model.forward(batch);
    for (Index b = 0; b < model.num_blocks() && GetParam() > 0; ++b) {
      const auto& routing = model.feed_forward(b).routing();
      sum += losses.balance * load_balancing_loss(routing).value + losses.z * z_loss(routing).value;
    }
    return sum;
  };
  const double ce = model.forward(batch);
  const double added = model.backward(batch, losses);
  EXPECT_NEAR(ce + added, loss(), 1e-12);
  model.walk([&](const auto& name, auto& parameter, const auto& gradient) {
    const Matrix<double> expected = gradient;
    EXPECT_LT(gradient_error(loss, parameter, expected), 1e-7) << name();
  });
}

TEST_P(ByteLmModel, BitsDoNotDependOnTheThreads) {
  Model<float> one(tiny(GetParam()), 3), three(tiny(GetParam()), 3);
  three.set_threads(3);
  const Batch batch = some_batch(300, 3);
  EXPECT_EQ(one.forward(batch), three.forward(batch));
  one.backward(batch, {.balance = 0.01, .z = 0.001});
  three.backward(batch, {.balance = 0.01, .z = 0.001});
  std::vector<Matrix<float>> gradients;
  one.walk([&](const auto&, auto&, const auto& gradient) { gradients.push_back(gradient); });
  auto next = gradients.begin();
  three.walk([&](const auto& name, auto&, const auto& gradient) {
    EXPECT_TRUE(gradient == *next++) << name();
  });
}

#if MOE_COUNTS_ALLOCATIONS
TEST_P(ByteLmModel, AllocatesInItsFirstStepOnly) {
  ModelConfig config;
  config.feed_forward.num_experts = GetParam();
  Model<float> model(config, 3);
  const Batch batch = some_batch(512, config.context);
  const auto step = [&] {
    model.forward(batch);
    model.backward(batch, {.balance = 0.01, .z = 0.001});
  };
  step();
  EXPECT_EQ(moe::testing::count_allocations(step), 0);
}
#endif

INSTANTIATE_TEST_SUITE_P(DenseAndMoe, ByteLmModel, ::testing::Values(0, 4));

TEST(ByteLm, TheDenseFeedForwardIsTheNarrowestWithAsManyFlops) {
  const FeedForwardConfig moe{.num_experts = 32};
  const FeedForwardConfig dense = dense_of_equal_flops(moe);
  FeedForwardConfig narrower = dense;
  --narrower.d_ff;
  EXPECT_GE(dense.forward_flops(), moe.forward_flops());
  EXPECT_LT(narrower.forward_flops(), moe.forward_flops());
  EXPECT_EQ(dense.d_ff, 76);
}

TEST(ByteLm, TheTwentyLinesOfItsReadmeTrainAnUpcycledLayer) {
  const Matrix<float> x = Matrix<float>::Random(256, 16);
  const Matrix<float> target = x.array().sin().rowwise().reverse();
  const moe::Index steps = 200;
  const moe::DenseFfn<float> yours({16, 24, 16}, {}, 1);

  moe::MoELayer<float> layer =
      moe::upcycle(yours.expert(), {.copies = 4, .chosen_copies = 2, .noise = 0.02}, /*seed=*/1);
  moe::MoELayer<float>::Tape tape;
  auto grads = layer.zero_grads();
  moe::AdamW<float> adamw({.beta2 = 0.99, .decay = 0.1});
  Matrix<float> y(x.rows(), 16), dx(x.rows(), 16);
  float first = 0.0F, loss = 0.0F;
  for (moe::Index step = 1; step <= steps; ++step) {
    layer.forward(x, y, tape, {.num_threads = 1});  // small: threads would only wait
    const Matrix<float> dy = (y - target) / static_cast<float>(x.rows());
    const auto losses = 0.01F * load_balancing_loss(tape.routing) + 0.001F * z_loss(tape.routing);
    layer.for_each_parameter([](const auto&, auto&, auto& grad) { grad.setZero(); }, grads);
    layer.backward(x, dy, tape, dx, grads, losses.gradient);
    adamw.step(
        [&](auto&& visit) { moe::visit_trained(visit, layer, grads, "moe."); },
        {.rate = 0.01 * moe::cosine_factor(step, {.warm_up = 10, .total = steps}), .clip = 1.0});
    loss = (y - target).squaredNorm();
    first = step == 1 ? loss : first;
  }
  EXPECT_LT(loss, 0.1F * first);
}

TEST(ByteLm, ExpertsOfOneSourceEachShareItsBitsAndShuffledOnesNone) {
  moe::RoutingTable<float> table;
  table.expert.resize(1000, 1);
  Specialisation seen(4, 4);
  for (const moe::Index source : {0, 1, 2, 3}) {
    table.expert.setConstant(static_cast<moe::ExpertId>(3 - source));
    seen.add(table, std::vector<Index>(1000, source));
  }
  EXPECT_NEAR(seen.bits(), 2.0, 1e-9);
  EXPECT_LT(seen.shuffled_bits(), 0.01);
  EXPECT_NEAR(seen.counts()(3, 0), 1000.0, 0.0);
}

/// Two files of lines "aaaa", "bbbb" whose letters say the file.
class ByteLmCorpus : public ::testing::Test {
 protected:
  std::filesystem::path folder = std::filesystem::path(::testing::TempDir()) / "byte_lm_corpus";

  void SetUp() override {
    std::filesystem::create_directories(folder);
    for (const char letter : {'b', 'a'}) {
      std::ofstream file(folder / (std::string(1, letter) + ".txt"));
      for (int line = 0; line < 500; ++line) {
        file << std::string(9, static_cast<char>(letter + (line >= 450) + (line >= 475))) << '\n';
      }
    }
  }
  void TearDown() override { std::filesystem::remove_all(folder); }
};

TEST_F(ByteLmCorpus, SplitsEachFileAndGivesNoByteToTwoSplits) {
  const Corpus corpus({folder.string()}, 4);
  ASSERT_EQ(corpus.num_sources(), 2);
  EXPECT_EQ(corpus.name(0), "a");
  Batch batch;
  std::vector<Index> source;
  for (const int split : {0, 1, 2}) {
    const Index all = corpus.size(static_cast<Split>(split));
    corpus.spread(static_cast<Split>(split), all, 0, all, batch, source);
    ASSERT_EQ(static_cast<Index>(batch.target.size()), all);
    EXPECT_EQ(source.front(), 0);
    EXPECT_EQ(source.back(), 1);
    for (std::size_t i = 0; i < batch.target.size(); ++i) {
      const int letter = 'a' + static_cast<int>(source[i]) + split;
      EXPECT_TRUE(batch.target[i] == '\n' || batch.target[i] == letter) << split << ' ' << i;
    }
  }
}

TEST_F(ByteLmCorpus, DrawsTheSameBatchForTheSameSeedAndStep) {
  const Corpus corpus({folder.string()}, 4);
  Batch first, again, other;
  corpus.draw(1, 7, 50, first);
  corpus.draw(1, 7, 50, again);
  corpus.draw(1, 8, 50, other);
  EXPECT_EQ(first.context, again.context);
  EXPECT_EQ(first.target, again.target);
  EXPECT_NE(first.context, other.context);
}

TEST_F(ByteLmCorpus, IsCutAnywhereWhereNoLineEnds) {
  const std::filesystem::path file = folder / "long.txt";
  for (const char* end : {"", "\n"}) {
    std::ofstream(file, std::ios::binary) << std::string(1999, 'x') << end;
    const Corpus corpus({file.string()}, 4);
    EXPECT_NEAR(static_cast<double>(corpus.size(Split::train)), 1796.0, 1.0);
    EXPECT_NEAR(static_cast<double>(corpus.size(Split::validation)), 96.0, 1.0);
    EXPECT_NEAR(static_cast<double>(corpus.size(Split::test)), 96.0, 1.0);
  }
  // A line that goes on through all of the validation and into the test.
  std::ofstream(file, std::ios::binary) << std::string(1700, 'x') << '\n'
                                        << std::string(249, 'y') << '\n'
                                        << std::string(49, 'z');
  const Corpus corpus({file.string()}, 4);
  EXPECT_EQ(corpus.size(Split::train), 1796);
  EXPECT_EQ(corpus.size(Split::validation), 1951 - 1800 - 4);
}

#if defined(__linux__)  // others do not have such names
TEST_F(ByteLmCorpus, RefusesAFileWhoseNameIsNotUtf8) {
  const std::string name = (folder / "caf\xe9.txt").string();
  std::filesystem::copy_file(folder / "a.txt", name);
  try {
    const Corpus corpus({name}, 4);
    ADD_FAILURE() << "accepted";
  } catch (const std::invalid_argument& error) {
    EXPECT_EQ(error.what(),
              "the name of " + name + " is not UTF-8, expected one that results in JSON can name");
  }
}
#endif

#if defined(__linux__)
TEST_F(ByteLmCorpus, RefusesAFileWhoseNameHasSeveralLines) {
  const std::string name = (folder / "a\nb.txt").string();
  std::filesystem::copy_file(folder / "a.txt", name);
  EXPECT_THROW(Corpus({name}, 4), std::invalid_argument);
}
#endif

TEST_F(ByteLmCorpus, RefusesWhatCannotBeReadOrIsTooShort) {
  EXPECT_THROW(Corpus({(folder / "c.txt").string()}, 4), std::invalid_argument);
  EXPECT_THROW(Corpus({(folder / "a.txt").string()}, 400), std::invalid_argument);
  EXPECT_THROW(Corpus({}, 4), std::invalid_argument);
}

}  // namespace
}  // namespace byte_lm::byte_lm_test
