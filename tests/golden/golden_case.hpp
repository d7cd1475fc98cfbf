// SPDX-License-Identifier: Apache-2.0
// A golden file (data/README.md) -> check_file<T>() -> a list of Errors: runs the file through a
// MoELayer and measures how far every recorded tensor is off.
#pragma once

#include <moe/io/families.hpp>
#include <moe/io/layer_names.hpp>
#include <moe/io/place.hpp>
#include <moe/moe.hpp>

#include <cmath>
#include <set>
#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

namespace moe::golden {

enum class Kind { output, router, loss, gradient };

/// error = max |difference| / max |reference|; of a reference that is all zero: max |difference|.
struct Error {
  std::string tensor;
  Kind kind;
  double error, bound;

  bool ok() const { return error <= bound; }  // false for NaN
};

inline bool all_ok(const std::vector<Error>& errors) {
  return !errors.empty() &&
         std::all_of(errors.begin(), errors.end(), [](const Error& e) { return e.ok(); });
}

/// The worst of one kind, NaN above all numbers.
inline double worst(const std::vector<Error>& errors, Kind kind) {
  double max = 0.0;
  for (const Error& e : errors) {
    if (e.kind == kind && !(e.error <= max)) {
      max = std::isnan(max) ? max : e.error;
    }
  }
  return max;
}

/// Largest relative errors that pass: rounding, and no more.
template <Real T>
double bound_of(Kind kind) {
  if (std::is_same_v<T, double>) {
    return 1e-11;
  }
  return kind == Kind::gradient ? 2e-5 : 5e-6;
}

template <class A, class B>
double relative_error(const A& got, const B& want) {
  double difference = 0.0, size = 0.0;
  for (Index row = 0; row < want.rows(); ++row) {
    for (Index col = 0; col < want.cols(); ++col) {
      const double a = static_cast<double>(got(row, col)), b = static_cast<double>(want(row, col));
      if (!std::isfinite(a) || !std::isfinite(b)) {
        return std::nan("");
      }
      difference = std::max(difference, std::abs(a - b));
      size = std::max(size, std::abs(b));
    }
  }
  return size > 0.0 ? difference / size : difference;
}

/// What a file's metadata say: our config, and where each of our parameters is in its weights.
class Facts {
 public:
  explicit Facts(const io::SafeTensors& file)
      : config_(io::layer_config(facts_of(file),
                                 io::ModelConfig::parse(meta(file, "config"), file.file()), 0)),
        names_(facts_of(file), "weights.", config_.num_experts,
               [&](const std::string& name) { return file.contains(name); }),
        unordered_(meta(file, "semantics").find("sorted=False") != std::string::npos) {
    const auto shape = io::ModelConfig::parse(meta(file, "shape"), file.file());
    sequence_ = shape.size("seq");
    tokens_ = shape.size("tokens");
  }

  const MoEConfig& config() const { return config_; }
  Index tokens() const { return tokens_; }
  Index sequence() const { return sequence_; }
  bool drops() const { return config_.capacity.limited(); }
  /// Whether the choices of a token are recorded in no order.
  bool unordered() const { return unordered_; }

  /// Of a parameter's weights; under `prefix` of its gradients, which lie in the same way.
  template <class M>
  io::Place place(const std::string& name, const M& parameter,
                  const std::string& prefix = "weights") const {
    io::Place place = names_.place(name, {parameter.rows(), parameter.cols()});
    place.tensor.replace(0, std::string("weights").size(), prefix);
    return place;
  }

 private:
  static const std::string& meta(const io::SafeTensors& file, const std::string& key) {
    const auto found = file.metadata().find(key);
    if (found == file.metadata().end()) {
      throw std::invalid_argument(file.file() + ": no " + key + " in its metadata");
    }
    return found->second;
  }
  static const io::Family& facts_of(const io::SafeTensors& file) {
    const std::string& name = meta(file, "family");
    // The same family, recorded once more to tell two ways to mask its groups apart.
    const io::Family* const family =
        io::find_family(name == "deepseek_v3_minf" ? "deepseek_v3" : name);
    if (family == nullptr) {
      throw std::invalid_argument(file.file() + ": family \"" + name + "\" is unknown");
    }
    return *family;
  }

  MoEConfig config_;
  io::LayerNames names_;
  bool unordered_;
  Index tokens_ = 0, sequence_ = 0;
};

/// One file in one scalar. Every tensor of the file must be used: see run().
template <Real T>
class Case {
 public:
  using Layer = MoELayer<T>;

  explicit Case(const io::SafeTensors& file)
      : file_(file), facts_(file), layer_(facts_.config(), 0) {
    layer_.for_each_parameter([&](const std::string& name, auto& parameter) {
      read(facts_.place(name, parameter), parameter);
    });
    x_ = read<T>("input.x", facts_.tokens(), width());
    r_ = read<T>("input.r", facts_.tokens(), width());
    call_.num_threads = 1;  // some 20 tokens
    call_.tokens.sequence_length = facts_.sequence();
  }

  std::vector<Error> run() {
    y_.resize(x_.rows(), width());
    layer_.forward(x_, y_, tape_, call_);
    compare("output.y64", Kind::output, y_);
    if (std::is_same_v<T, float>) {
      compare("output.y", Kind::output, y_);
    }
    compare_packed();
    used_.insert("output.y");  // HF's own rounding: nothing for double to be measured by
    compare_router();
    compare_losses();
    for (const TensorView_& tensor : file_.tensors()) {
      if (!used_.contains(tensor.name)) {
        errors_.push_back({tensor.name + " (not compared)", Kind::router, std::nan(""), 0.0});
      }
    }
    return errors_;
  }

 private:
  using TensorView_ = io::TensorView;
  using Loss = RoutingLoss<T>;

  Index width() const { return facts_.config().d_model; }

  template <class S>
  Matrix<S> read(const std::string& name, Index rows, Index cols) {
    used_.insert(name);
    return io::read_matrix<S>(file_, name, rows, cols);
  }

  template <class S>
  void read(const io::Place& place, Matrix<S>& to) {
    used_.insert(place.tensor);
    io::read_place<S>({file_.at(place.tensor), file_.file()}, place, to);
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
    packed.forward(x_, y, scratch, call_);
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
    compare("router.logits", Kind::router, table.logits);
    Matrix<std::int64_t> expert = table.expert.template cast<std::int64_t>();
    Matrix<T> weight = table.weight;
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
      const Loss aux = hugging_face_load_balancing_loss(tape_.routing);
      compare_loss("aux.load_balancing", aux);
      compare_aux_gradients(aux);
    }
    if (file_.contains("aux.load_balancing_masked")) {
      const Matrix<std::uint8_t> mask = read<std::uint8_t>(
          "input.attention_mask", facts_.tokens() / facts_.sequence(), facts_.sequence());
      const Loss masked = hugging_face_load_balancing_loss(
          tape_.routing, {mask.data(), static_cast<std::size_t>(mask.size())});
      compare_loss("aux.load_balancing_masked", masked);
      compare_aux_gradients(masked, "_masked");
    }
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
    Matrix<T> dx(x_.rows(), width());
    layer_.backward(x_, dy, tape_, dx, grads, losses.gradient);
    compare(prefix + ".x", Kind::gradient, dx);
    layer_.for_each_parameter(
        [&](const std::string& name, const auto&, const auto& grad) {
          const io::Place here = facts_.place(name, grad, prefix);
          const io::Place plain = facts_.place(name, grad, "grad");
          Matrix<double> want = Matrix<double>::Zero(grad.rows(), grad.cols());
          double bound = bound_of<T>(Kind::gradient);
          if (file_.contains(here.tensor)) {
            read(here, want);
          } else if (!dy.isZero(0) && file_.contains(plain.tensor)) {
            read(plain, want);
          } else {
            bound = 0.0;
          }
          errors_.push_back(
              {prefix + "." + name, Kind::gradient, relative_error(grad, want), bound});
        },
        grads);
  }

  const io::SafeTensors& file_;
  Facts facts_;
  Layer layer_;
  Matrix<T> x_, r_, y_;
  CallOptions call_;
  typename Layer::Tape tape_;
  std::set<std::string> used_;
  std::vector<Error> errors_;
};

/// Throws FormatError or std::invalid_argument if the file does not hold a golden case.
template <Real T>
std::vector<Error> check_file(const io::SafeTensors& file) {
  return Case<T>(file).run();
}

// Compiled once, in golden_case.cpp.
extern template std::vector<Error> check_file<float>(const io::SafeTensors& file);
extern template std::vector<Error> check_file<double>(const io::SafeTensors& file);

}  // namespace moe::golden
