// SPDX-License-Identifier: Apache-2.0
// A golden file of a layer of product keys (Doge) -> ProductKeyCase<T> -> a list of Errors, as
// golden_case.hpp has it of all others.
#pragma once

#include <moe/moe.hpp>

#include <cmath>
#include <set>
#include <string>
#include <vector>

#include "golden_error.hpp"
#include "golden_facts.hpp"

namespace moe::golden {

/// One file in one scalar. Every tensor of the file must be used: see run().
template <Real T>
class ProductKeyCase {
 public:
  ProductKeyCase(const io::SafeTensors& file, const Facts& facts)
      : file_(file), facts_(facts), layer_(io::product_key_layer_config(facts.config()), 0) {
    layer_.for_each_parameter(
        [&](const std::string& name, auto& parameter) { read_parts(name, "weights", parameter); });
  }

  std::vector<Error> run() {
    const Index tokens = facts_.tokens(), width = layer_.d_in();
    const Matrix<T> x = read<T>("input.x", tokens, width);
    const Matrix<T> dy = read<T>("input.r", tokens, width);
    Matrix<T> y(tokens, width), dx(tokens, width);
    auto grads = layer_.zero_grads();
    layer_.forward(x, y, tape_, {.num_threads = 1});
    layer_.backward(x, dy, tape_, dx, grads);
    compare("output.y64", Kind::output, y);
    if (std::is_same_v<T, float>) {
      compare("output.y", Kind::output, y);
    }
    used_.insert("output.y");
    compare_router();
    compare("grad.x", Kind::gradient, dx);
    layer_.for_each_parameter(
        [&](const std::string& name, const auto&, const auto& grad) {
          Matrix<double> want(grad.rows(), grad.cols());
          read_parts(name, "grad", want);
          add("grad." + name, Kind::gradient, relative_error(grad, want));
        },
        grads);
    for (const io::TensorView& tensor : file_.tensors()) {
      if (!used_.contains(tensor.name)) {
        errors_.push_back({tensor.name + " (not compared)", Kind::router, std::nan(""), 0.0});
      }
    }
    return errors_;
  }

 private:
  /// Doge's code gives out its logits as (2, N, n), which are the same numbers in the same order.
  void compare_router() {
    const auto& table = tape_.routing;
    const Index rows = 2 * table.num_tokens(), num_keys = layer_.router().config().num_keys;
    compare("router.logits", Kind::router,
            Eigen::Map<const Matrix<T>>(table.logits.data(), rows, num_keys));
    compare("router.weights", Kind::router, table.weight);
    const auto want = read<std::int64_t>("router.indices", table.num_tokens(), table.top_k());
    const auto wrong = (want.template cast<ExpertId>().array() != table.expert.array()).count();
    errors_.push_back({"router.indices", Kind::router, static_cast<double>(wrong), 0.0});
  }

  template <class S>
  Matrix<S> read(const std::string& name, Index rows, Index cols) {
    used_.insert(name);
    return io::read_matrix<S>(file_, name, rows, cols);
  }
  template <class S>
  void read_parts(const std::string& name, const std::string& prefix, Matrix<S>& to) {
    for (const io::PartPlace& part : facts_.parts(name, to, prefix)) {
      used_.insert(part.place.tensor);
      io::read_part<S>({file_.at(part.place.tensor), file_.file()}, part, to);
    }
  }

  template <class M>
  void compare(const std::string& name, Kind kind, const M& got) {
    add(name, kind, relative_error(got, read<double>(name, got.rows(), got.cols())));
  }
  void add(const std::string& name, Kind kind, double error) {
    errors_.push_back({name, kind, error, bound_of<T>(kind)});
  }

  const io::SafeTensors& file_;
  const Facts& facts_;
  ProductKeyLayer<T> layer_;
  ProductKeyTape<T> tape_;
  std::set<std::string> used_;
  std::vector<Error> errors_;
};

}  // namespace moe::golden
