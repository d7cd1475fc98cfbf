// SPDX-License-Identifier: Apache-2.0
// All options of RouterConfig together, drawn at random: the router against its twin in plain loops
// and against central differences, with the chosen experts held fixed.
#include <gtest/gtest.h>

#include <algorithm>
#include <sstream>
#include <string_view>

#include "../support/finite_difference.hpp"
#include "../support/matrix_near.hpp"
#include "../support/random_matrix.hpp"
#include "../support/table_scalar.hpp"
#include "moe/reference/router.hpp"

namespace moe::router_options_test {
namespace {

using testing::gradient_error;
using testing::random_matrix;
using testing::scalar_of;
using Table = Router<double>::Table;
using Gradient = RoutingGradient<double>;

constexpr Index N = 3, D = 3, E = 6, K = 3;
constexpr int draws = 1000;

/// The values of the options of one draw, one after the other.
class Draw {
 public:
  explicit Draw(int number) : random_(static_cast<std::uint64_t>(number), 7) {}

  template <class V>
  V of(std::initializer_list<V> values) {
    const auto size = static_cast<double>(values.size());
    const auto chosen = static_cast<std::ptrdiff_t>(size * random_.uniform(option_++));
    numbers_ << chosen << ' ';
    return values.begin()[chosen];
  }
  bool flag() { return of({false, true}); }

  /// Which values were drawn.
  std::string numbers() const { return numbers_.str(); }

 private:
  detail::CounterRandom random_;
  std::uint64_t option_ = 0;
  std::ostringstream numbers_;
};

struct Options {
  RouterConfig config;
  bool masked;
  std::string name;
};

Options options(int number) {
  Draw draw(number);
  RouterConfig config;
  config.logits = {.input_jitter = draw.of({0.0, 0.3}),
                   .bias = draw.flag(),
                   .softcap = draw.of({0.0, 2.0}),
                   .noisy = draw.flag()};
  config.score = draw.of({Score::softmax, Score::sigmoid, Score::sqrt_softplus, Score::identity});
  const GroupRule rule =
      draw.of({GroupRule::best, GroupRule::sum_of_two_best, GroupRule::equal_quota});
  const auto others = draw.of({OtherGroups::zero, OtherGroups::minus_infinity});
  config.selection = {
      .bias = draw.flag(),
      .groups = draw.of<std::optional<GroupLimit>>({std::nullopt, GroupLimit{3, rule, 2, others}})};
  const Index always = draw.of<Index>({0, 0, 1, 2});
  if (!config.selection.groups) {
    config.selection.always = always;
  }
  const bool by_table = draw.of({false, false, true}) && always == 0;
  if (by_table && !config.selection.bias && !config.selection.groups) {
    config.selection.vocabulary = 4;
  }
  config.weight = {.source = draw.of({WeightSource::score,
                                      config.selection.bias && config.selection.always == 0
                                          ? WeightSource::biased_score
                                          : WeightSource::score,
                                      WeightSource::softmax_of_chosen, WeightSource::one}),
                   .renormalise = draw.flag(),
                   .epsilon = draw.of({0.0, 1e-20, 0.4}),
                   .epsilon_rule = draw.of({EpsilonRule::added, EpsilonRule::least}),
                   .scale = draw.of({1.0, 2.5}),
                   .expert_scale = draw.of({ExpertScale::off, ExpertScale::fixed,
                                            ExpertScale::learned, ExpertScale::learned_for_all})};
  const bool negative =
      config.weight.source == WeightSource::biased_score ||
      (config.weight.source == WeightSource::score && config.score == Score::identity);
  if (negative && *config.weight.renormalise) {
    config.weight.epsilon_rule = EpsilonRule::added;  // the other is refused
  }
  const bool masked = draw.flag();
  return {config, masked, "draw " + std::to_string(number) + ": " + draw.numbers()};
}

constexpr std::int32_t ids[] = {3, 0, 2};

ExpertMask some_mask() {
  ExpertMask mask = ExpertMask::Ones(N, E);
  mask.row(0) << 0, 1, 1, 0, 1, 1;
  mask.row(1) << 0, 0, 0, 1, 0, 0;  // fewer than K
  return mask;
}

/// Whether the sums that weights are divided by are far from where the weights have a pole or bend.
bool is_smooth(const Router<double>& router, const Table& table) {
  const WeightConfig& weight = router.config().weight;
  const bool biased = weight.source == WeightSource::biased_score;
  double least = 1.0;
  for (Index t = 0; t < N && *weight.renormalise; ++t) {
    double sum = 0.0;
    Index used = 0;
    for (Index k = 0; k < K; ++k) {
      const ExpertId e = table.expert(t, k);
      used += e == none ? 0 : 1;
      if (e != none && (biased || weight.source == WeightSource::score)) {
        sum += table.probs(t, e) + (biased ? router.params().selection_bias(0, e) : 0.0);
      } else if (e != none) {
        sum += 1.0;
      }
    }
    const bool added = weight.epsilon_rule == EpsilonRule::added;
    if (used == 0) {
      continue;
    }
    least = std::min(least, added                  ? std::abs(sum + weight.epsilon)
                            : weight.epsilon > 0.0 ? std::abs(sum - weight.epsilon)
                                                   : sum);
  }
  return least > 0.1;
}

struct Numbers {
  Router<double> router;
  Matrix<double> x;
};

/// Parameters and tokens, the first for which the weights are smooth.
Numbers numbers(const RouterConfig& config, const CallOptions& call) {
  for (std::uint64_t seed = 1;; ++seed) {
    Numbers n{Router<double>(D, E, K, config, seed), random_matrix<double>(N, D, seed + 1000)};
    testing::randomise(n.router.params(), seed, 0.8);
    Table table;
    n.router.route(n.x, call, table);
    if (is_smooth(n.router, table)) {
      return n;
    }
  }
}

TEST(RouterOptions, AgreeWithTheTwinInPlainLoops) {
  const ExpertMask mask = some_mask();
  for (int number = 0; number < draws; ++number) {
    const Options o = options(number);
    const CallOptions call{
        .num_threads = 1, .tokens = {.ids = ids}, .expert_mask = o.masked ? &mask : nullptr};
    const auto [router, x] = numbers(o.config, call);
    Table table;
    router.route(x, call, table);
    for (Index t = 0; t < N; ++t) {
      reference::Asked asked{.top_k = K};
      for (Index e = 0; o.masked && e < E; ++e) {
        asked.allowed.push_back(mask(t, e));
      }
      const ExpertTable& by_id = router.rule().table();
      for (Index k = 0; by_id.size() > 0 && k < K; ++k) {
        const ExpertId e = by_id(ids[t], k);
        asked.experts.push_back(o.masked && mask(t, e) == 0 ? none : e);
      }
      reference::Row probs;
      const auto want =
          reference::route(router.params(), o.config, asked, reference::row_of(x, t), probs);
      std::size_t used = 0;
      for (Index k = 0; k < K; ++k) {
        if (table.expert(t, k) == none) {
          EXPECT_EQ(table.weight(t, k), 0.0) << o.name;
          continue;
        }
        ASSERT_LT(used, want.size()) << o.name;
        ASSERT_EQ(table.expert(t, k), want[used].expert) << o.name;
        EXPECT_NEAR(table.weight(t, k), want[used].weight,
                    1e-13 * std::max(1.0, std::abs(want[used].weight)))
            << o.name;
        ++used;
      }
      EXPECT_EQ(used, want.size()) << o.name;
      for (Index e = 0; e < E; ++e) {
        const bool allowed = !o.masked || mask(t, e) != 0;
        const double prob = allowed ? probs[static_cast<std::size_t>(e)] : 0.0;
        EXPECT_NEAR(table.probs(t, e), prob, 1e-14) << o.name;
      }
    }
  }
}

TEST(RouterOptions, HaveTheGradientsOfCentralDifferences) {
  const ExpertMask mask = some_mask();
  for (int number = 0; number < draws; ++number) {
    const Options o = options(number);
    CallOptions call{.num_threads = 1,
                     .tokens = {.ids = ids},
                     .expert_mask = o.masked ? &mask : nullptr,
                     .noise_seed = 5};
    auto made = numbers(o.config, call);
    Router<double>& router = made.router;
    Matrix<double>& x = made.x;
    Table table, again;
    router.route(x, call, table);
    const Gradient slope{.weight = random_matrix<double>(N, K, 71),
                         .probs = random_matrix<double>(N, E, 72),
                         .logits = random_matrix<double>(N, E, 73),
                         .noise_scale = random_matrix<double>(table.noise_scale.rows(), E, 74)};
    Gradient gradient = slope;
    Matrix<double> dx(N, D);
    auto grads = zeros_like(router.params());
    router.backward(x, table, gradient, dx, grads);

    const Matrix<ExpertId> chosen = table.expert;
    call.experts = &chosen;
    const auto f = [&] {
      router.route(x, call, again);
      return scalar_of(again, slope);
    };
    double error = gradient_error(f, x, dx);
    Router<double>::Params::for_each(
        [&](std::string_view name, Matrix<double>& tensor, const Matrix<double>& grad) {
          const bool fixed =
              name == "selection_bias" ||
              (name == "expert_scale" && o.config.weight.expert_scale == ExpertScale::fixed);
          EXPECT_TRUE(!fixed || grad.isZero(0)) << o.name;
          error = std::max(error, fixed ? 0.0 : gradient_error(f, tensor, grad));
        },
        router.params(), grads);
    EXPECT_LT(error, 1e-7) << o.name;
  }
}

}  // namespace
}  // namespace moe::router_options_test
