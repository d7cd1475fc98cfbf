// SPDX-License-Identifier: Apache-2.0
// Recorded layers packed in every storage: y against the record's, by what a storage promises and
// by what the report of the pack says.
#include <gtest/gtest.h>

#include <filesystem>

#include "../support/pack_bound.hpp"
#include "../support/storages.hpp"
#include "golden_layer.hpp"

namespace moe::golden::packed_test {
namespace {

/// y of a packed layer against the record's.
struct Outcome {
  Index tokens;
  double relative;  ///< |packed y - y| / |y|, over all tokens
  double reported;  ///< what independent errors of the weights, as large as reported, add up to
  double of_bound;  ///< the largest share that a token's error has of its bound
};

/// The largest relative error of a kind of tensor.
double largest(const std::vector<PackError>& errors, std::string_view kind) {
  double most = 0.0;
  for (const PackError& error : errors) {
    most = error.tensor.ends_with(kind) ? std::max(most, error.relative()) : most;
  }
  return most;
}

template <class S>
Outcome run(const std::string& path) {
  const io::SafeTensors file = io::SafeTensors::load(path);
  return with_recorded<float>(file, []<class RouterT>(Recorded<float, RouterT>& recorded) {
    const auto& layer = recorded.layer();
    const auto packed = pack<S>(layer);
    const auto errors = pack_errors(layer, packed);
    typename std::remove_const_t<decltype(packed)>::Scratch scratch;
    const Matrix<float>& x = recorded.expert_x();
    Matrix<float> y(x.rows(), layer.d_out());
    packed.forward(recorded.input(), y, scratch, recorded.call());
    const auto want = recorded.template read<double>("output.y64", y.rows(), y.cols());
    const Matrix<double> off = y.template cast<double>() - want;
    Outcome outcome{.tokens = y.rows(),
                    .relative = off.norm() / want.norm(),
                    .reported = std::hypot(largest(errors, ".gate"), largest(errors, ".up"),
                                           largest(errors, ".down")),
                    .of_bound = 0.0};
    const testing::PackBound<S, RouterT> bound(layer, errors);
    for (Index t = 0; t < y.rows(); ++t) {
      const double share = off.row(t).norm() / bound(x, scratch.routing, t);
      outcome.of_bound = std::isnan(share) ? share : std::max(outcome.of_bound, share);
    }
    return outcome;
  });
}

std::vector<std::string> recorded_files() {
  std::vector<std::string> paths;
  for (const auto& entry : std::filesystem::directory_iterator(MOE_GOLDEN_DIR)) {
    if (entry.path().extension() == ".safetensors") {
      paths.push_back(entry.path().string());
    }
  }
  return paths;
}

// Of a token alone, with 16 numbers, much may cancel: those files pass together.
TEST(GoldenPacked, LayersInQ8AreOffByLessThanTwoPercent) {
  ASSERT_GE(recorded_files().size(), 50u);
  double squares = 0.0, alone = 0.0;
  for (const std::string& path : recorded_files()) {
    const Outcome outcome = run<q8>(path);
    EXPECT_LT(outcome.relative, outcome.tokens == 1 ? 0.03 : 0.02) << path;
    squares += outcome.tokens == 1 ? outcome.relative * outcome.relative : 0.0;
    alone += outcome.tokens == 1 ? 1.0 : 0.0;
  }
  EXPECT_LT(std::sqrt(squares / alone), 0.02);
}

template <class S>
class GoldenPackedAs : public ::testing::Test {};
TYPED_TEST_SUITE(GoldenPackedAs, testing::FloatStorages);

// Rows in 8 bits add up to 2 %; what cancels in a token alone makes its error the larger part.
TYPED_TEST(GoldenPackedAs, LayersAreOffByNoMoreThanTheReportOfThePackSays) {
  for (const std::string& path : recorded_files()) {
    const Outcome outcome = run<TypeParam>(path);
    EXPECT_LE(outcome.of_bound, 1.0) << path;
    EXPECT_LT(outcome.relative, 2.5 * outcome.reported + 0.02) << path;
  }
}

}  // namespace
}  // namespace moe::golden::packed_test
