// SPDX-License-Identifier: Apache-2.0
// A golden file (data/README.md) -> check_file<T>() -> a list of Errors: runs the file through a
// MoELayer and measures how far every recorded tensor is off.
#pragma once

#include <algorithm>
#include <cmath>
#include <numeric>
#include <string>
#include <tuple>
#include <vector>

#include "golden_error.hpp"
#include "golden_layer.hpp"
#include "golden_product_keys.hpp"

namespace moe::golden {

/// One file in one scalar. Every tensor of the file must be used: see run().
template <Real T, class RouterT>
class Case : private Recorded<T, RouterT> {
 public:
  using typename Recorded<T, RouterT>::Layer;

  Case(const io::SafeTensors& file, const Facts& facts) : Recorded<T, RouterT>(file, facts) {
    r_ = read<T>("input.r", facts_.tokens(), width());
  }

  std::vector<Error> run() {
    y_.resize(x_.rows(), width());
    layer_.forward(input(), y_, tape_, call_);
    compare("output.y64", Kind::output, y_);
    if (std::is_same_v<T, float>) {
      compare("output.y", Kind::output, y_);
    }
    compare_packed();
    used_.insert("output.y");  // HF's own rounding: nothing for double to be measured by
    compare_router();
    compare_losses();
    for (const TensorView_& tensor : file_.tensors()) {
      // "layer": the half of a decoder layer that is around the block, which is the model's.
      if (!used_.contains(tensor.name) && !tensor.name.starts_with("layer")) {
        errors_.push_back({tensor.name + " (not compared)", Kind::router, std::nan(""), 0.0});
      }
    }
    return errors_;
  }

 private:
  using Base = Recorded<T, RouterT>;
  using Base::call_, Base::used_, Base::input, Base::width, Base::apart;
  using Base::file_, Base::facts_, Base::layer_, Base::x_, Base::expert_x_, Base::second_;
  using TensorView_ = io::TensorView;
  using Loss = RoutingLoss<T>;

  template <class S>
  Matrix<S> read(const std::string& name, Index rows, Index cols) {
    return Base::template read<S>(name, rows, cols);
  }

  /// The first of the experts that a token may have, and how many there are: those of its set.
  Index first_expert(Index token) const {
    const bool of_second = !second_.empty() && second_[static_cast<std::size_t>(token)] != 0;
    return of_second ? facts_.config().second_experts : 0;
  }
  Index num_ranked() const {
    return layer_.num_experts() - facts_.config().router.selection.always -
           facts_.config().second_experts;
  }
  /// (N, E) of the experts that a token may have, which files count from 0.
  Matrix<T> of_own_set(const Matrix<T>& all) const {
    Matrix<T> own(all.rows(), num_ranked());
    for (Index t = 0; t < all.rows(); ++t) {
      own.row(t) = all.row(t).segment(first_expert(t), num_ranked());
    }
    return own;
  }

  void compare(const std::string& name, Kind kind, const Matrix<T>& got) {
    compare(name, kind, got, read<double>(name, got.rows(), got.cols()));
  }
  void compare(const std::string& name, Kind kind, const Matrix<T>& got,
               const Matrix<double>& want) {
    errors_.push_back({name, kind, relative_error(got, want), bound_of<T>(kind)});
  }
  /// Integers must be equal: the error is the number of those that are not.
  void compare_exactly(const std::string& name, const Matrix<std::int64_t>& got,
                       const Matrix<std::int64_t>& want) {
    const auto wrong = (got.array() != want.array()).count();
    errors_.push_back({name, Kind::router, static_cast<double>(wrong), 0.0});
  }

  void compare_packed() {
    const auto packed = pack<T>(layer_);
    typename std::remove_const_t<decltype(packed)>::Scratch scratch;
    Matrix<T> y(x_.rows(), width());
    packed.forward(input(), y, scratch, call_);
    compare("output.y64", Kind::output, y);
  }

  /// A token's choices by their experts.
  template <class S>
  static void sort_choices(Matrix<std::int64_t>& expert, Matrix<S>& weight) {
    for (Index token = 0; token < expert.rows(); ++token) {
      std::vector<std::pair<std::int64_t, S>> row;
      for (Index k = 0; k < expert.cols(); ++k) {
        row.emplace_back(expert(token, k), weight(token, k));
      }
      std::sort(row.begin(), row.end(), [](auto& a, auto& b) { return a.first < b.first; });
      for (Index k = 0; k < expert.cols(); ++k) {
        std::tie(expert(token, k), weight(token, k)) = row[static_cast<std::size_t>(k)];
      }
    }
  }

  void compare_router() {
    const auto& table = tape_.routing;
    // Of experts that are always chosen a file has weights and logits of their own.
    const Index always = facts_.config().router.selection.always;
    const Index chosen = table.top_k() - always;
    compare("router.logits", Kind::router, of_own_set(table.logits));
    if (always > 0) {
      compare("router.shared_logits", Kind::router, table.logits.rightCols(always));
      compare("router.shared_weights", Kind::router, table.weight.rightCols(always));
    }
    Matrix<std::int64_t> expert = table.expert.leftCols(chosen).template cast<std::int64_t>();
    Matrix<T> weight = table.weight.leftCols(chosen);
    for (Index t = 0; t < expert.rows(); ++t) {
      expert.row(t).array() -= first_expert(t);
    }
    auto want_expert = read<std::int64_t>("router.indices", expert.rows(), expert.cols());
    auto want_weight = read<double>("router.weights", expert.rows(), expert.cols());
    if (facts_.unordered()) {
      sort_choices(expert, weight);
      sort_choices(want_expert, want_weight);
    }
    compare_exactly("router.indices", expert, want_expert);
    compare("router.weights", Kind::router, weight, want_weight);
    if (facts_.drops()) {
      Matrix<std::int64_t> kept(table.num_tokens(), table.top_k());
      for (Index choice = 0; choice < kept.size(); ++choice) {
        kept.data()[choice] = tape_.kept[choice] ? 1 : 0;
      }
      compare_exactly("router.kept", kept,
                      read<std::int64_t>("router.kept", kept.rows(), kept.cols()));
    }
  }

  void compare_losses() {
    const Loss none_at_all;
    compare_gradients("grad", r_, none_at_all);
    if (facts_.drops()) {
      return compare_switch_losses();
    }
    if (file_.contains("aux.load_balancing")) {
      const Loss aux = token_loss();
      compare_loss("aux.load_balancing", aux);
      compare_aux_gradients(aux);
    }
    if (file_.contains("aux.load_balancing_hf_wiring")) {
      compare_hf_wiring();
    }
    if (file_.contains("aux.load_balancing_masked")) {
      const Matrix<std::uint8_t> mask = read<std::uint8_t>(
          "input.attention_mask", facts_.tokens() / facts_.sequence(), facts_.sequence());
      const Loss masked = token_loss({mask.data(), static_cast<std::size_t>(mask.size())});
      compare_loss("aux.load_balancing_masked", masked);
      compare_aux_gradients(masked, "_masked");
    }
  }

  /// HF's goes by a softmax of the logits and its k largest, whatever the router goes by.
  Loss token_loss(std::span<const std::uint8_t> mask = {}) const {
    const RouterConfig& router = facts_.config().router;
    const SelectionConfig& selection = router.selection;
    if (router.score == Score::softmax && !selection.bias && !selection.groups) {
      return hugging_face_load_balancing_loss(tape_.routing, mask);
    }
    RoutingTable<T> table = tape_.routing;
    const Matrix<T> logits = of_own_set(tape_.routing.logits);
    table.probs = table.logits = logits;
    set_softmax(logits, table);
    Loss loss = hugging_face_load_balancing_loss(table, mask);
    auto& gradient = loss.gradient;
    gradient.logits.setZero(table.num_tokens(), layer_.num_experts());
    for (Index t = 0; t < table.num_tokens(); ++t) {
      const T mean = (table.probs.row(t).array() * gradient.probs.row(t).array()).sum();
      gradient.logits.row(t).segment(first_expert(t), num_ranked()) =
          (table.probs.row(t).array() * (gradient.probs.row(t).array() - mean)).matrix();
    }
    gradient.probs.resize(0, 0);
    return loss;
  }

  /// Probs become the softmax of these logits, and the choices its largest.
  static void set_softmax(const Matrix<T>& logits, RoutingTable<T>& table) {
    for (Index t = 0; t < logits.rows(); ++t) {
      const auto exp = (logits.row(t).array() - logits.row(t).maxCoeff()).exp().eval();
      table.probs.row(t) = (exp / exp.sum()).matrix();
      std::vector<ExpertId> order(static_cast<std::size_t>(logits.cols()));
      std::iota(order.begin(), order.end(), ExpertId{0});
      std::stable_sort(order.begin(), order.end(),
                       [&](ExpertId a, ExpertId b) { return logits(t, a) > logits(t, b); });
      std::copy_n(order.begin(), table.top_k(), &table.expert.coeffRef(t, 0));
    }
  }

  /// Of the weights of all experts, 0 of those that were not chosen, as if they were logits.
  void compare_hf_wiring() {
    RoutingTable<T> table = tape_.routing;
    Matrix<T> weights = Matrix<T>::Zero(table.probs.rows(), table.probs.cols());
    for (Index t = 0; t < table.num_tokens(); ++t) {
      for (Index k = 0; k < table.top_k(); ++k) {
        weights(t, table.expert(t, k)) = table.weight(t, k);
      }
    }
    set_softmax(weights, table);
    compare_loss("aux.load_balancing_hf_wiring", hugging_face_load_balancing_loss(table));
  }

  void compare_switch_losses() {
    compare_loss("aux.load_balancing_predrop", switch_loss(tape_.routing));
    RoutingTable<T> table = tape_.routing;
    for (Index t = 0; t < table.num_tokens(); ++t) {
      if (!tape_.kept[t]) {
        table.expert(t, 0) = 0;  // HF: the argmax of a one-hot row that was set to zeros
      }
    }
    const Loss aux = switch_loss(table), z = z_loss(tape_.routing);
    compare_loss("aux.load_balancing", aux);
    compare_aux_gradients(aux);
    compare_loss("aux.z_loss", z);
    compare_gradients("grad_zonly", Matrix<T>::Zero(r_.rows(), r_.cols()), z);
  }

  /// HF wires Switch's loss as the mean of the losses of the sequences.
  Loss switch_loss(const RoutingTable<T>& table) const {
    Loss sum;
    const Index sequences = facts_.tokens() / facts_.sequence();
    for (Index s = 0; s < sequences; ++s) {
      std::vector<std::uint8_t> mask(static_cast<std::size_t>(facts_.tokens()), 0);
      std::fill_n(mask.begin() + s * facts_.sequence(), facts_.sequence(), std::uint8_t{1});
      sum += T(1.0 / static_cast<double>(sequences)) * load_balancing_loss(table, mask);
    }
    return sum;
  }

  void compare_loss(const std::string& name, const Loss& loss) {
    compare(name, Kind::loss, Matrix<T>::Constant(1, 1, loss.value));
  }

  /// Of the loss alone, and with the layer's own: what the file has.
  void compare_aux_gradients(const Loss& aux, const std::string& end = "") {
    if (file_.contains("grad_auxonly" + end + ".x")) {
      compare_gradients("grad_auxonly" + end, Matrix<T>::Zero(r_.rows(), r_.cols()), aux);
    }
    if (file_.contains("grad_aux" + end + ".x")) {
      compare_gradients("grad_aux" + end, r_, T(0.01) * aux);
    }
  }

  /// All gradients with this dy and these losses. What a file leaves out is 0 where only a loss is
  /// derived (dy = 0), and as without the loss elsewhere; a selection bias has none.
  void compare_gradients(const std::string& prefix, const Matrix<T>& dy, const Loss& losses) {
    auto grads = layer_.zero_grads();
    Matrix<T> dx(x_.rows(), width()), router_dx(x_.rows(), width());
    if (apart()) {
      layer_.backward(input(), dy, tape_, {dx, router_dx}, grads, losses.gradient);
      compare(prefix + ".x", Kind::gradient, router_dx);
      compare(prefix + ".expert_x", Kind::gradient, dx);
    } else {
      layer_.backward(input(), dy, tape_, dx, grads, losses.gradient);
      compare(prefix + ".x", Kind::gradient, dx);
    }
    layer_.for_each_parameter(
        [&](const std::string& name, const auto&, const auto& grad) {
          const auto here = facts_.parts(name, grad, prefix);
          const auto plain = facts_.parts(name, grad, "grad");
          Matrix<double> want = Matrix<double>::Zero(grad.rows(), grad.cols());
          double bound = 0.0;
          for (std::size_t i = 0; i < here.size(); ++i) {
            const bool has_own = file_.contains(here[i].place.tensor);
            if (has_own || (!dy.isZero(0) && file_.contains(plain[i].place.tensor))) {
              Base::read(has_own ? here[i] : plain[i], want);
              bound = bound_of<T>(Kind::gradient);
            }
          }
          errors_.push_back(
              {prefix + "." + name, Kind::gradient, relative_error(grad, want), bound});
        },
        grads);
  }

  Matrix<T> r_, y_;
  typename Layer::Tape tape_;
  std::vector<Error> errors_;
};

/// Throws FormatError or std::invalid_argument if the file does not hold a golden case.
template <Real T>
std::vector<Error> check_file(const io::SafeTensors& file) {
  const Facts facts(file);
  if (facts.config().is_rank_one()) {
    return ProductKeyCase<T>(file, facts).run();
  }
  return io::visit_router_type<T>(facts.config().router_type,
                                  [&]<class RouterT>(std::type_identity<RouterT>) {
                                    return Case<T, RouterT>(file, facts).run();
                                  });
}

// Compiled once, in golden_case.cpp.
extern template std::vector<Error> check_file<float>(const io::SafeTensors& file);
extern template std::vector<Error> check_file<double>(const io::SafeTensors& file);

}  // namespace moe::golden
