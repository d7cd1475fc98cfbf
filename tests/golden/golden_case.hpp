// SPDX-License-Identifier: Apache-2.0
// A golden file (data/README.md) -> check_file<T>() -> a list of Errors: runs the file through a
// MoELayer and measures how far every recorded tensor is off.
#pragma once

#include <moe/io/safetensors.hpp>
#include <moe/moe.hpp>

#include <cmath>
#include <nlohmann/json.hpp>
#include <set>
#include <stdexcept>
#include <string>
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

/// Our config of a file's, and HF's name of each of our parameters.
class Family {
 public:
  explicit Family(const io::SafeTensors& file) : name_(meta(file, "family")) {
    if (name_ != "mixtral" && name_ != "qwen2_moe" && name_ != "switch_transformers") {
      throw std::invalid_argument(file.file() + ": family \"" + name_ +
                                  "\" is unknown, expected mixtral, qwen2_moe or "
                                  "switch_transformers");
    }
    const auto hf = nlohmann::json::parse(meta(file, "config"));
    const auto shape = nlohmann::json::parse(meta(file, "shape"));
    sequence_ = shape.at("seq");
    tokens_ = shape.at("tokens");
    config_.d_model = hf.at("hidden_size");
    config_.d_ff = hf.at(name_ == "mixtral"     ? "intermediate_size"
                         : name_ == "qwen2_moe" ? "moe_intermediate_size"
                                                : "d_ff");
    config_.num_experts = hf.at(name_ == "mixtral" ? "num_local_experts" : "num_experts");
    if (name_ == "mixtral") {
      config_.top_k = hf.at("num_experts_per_tok");
    } else if (name_ == "qwen2_moe") {
      config_.top_k = hf.at("num_experts_per_tok");
      config_.router.weight.renormalise = hf.at("norm_topk_prob").get<bool>();
      config_.shared =
          SharedExpertConfig{.d_ff = hf.at("shared_expert_intermediate_size"), .output_gate = true};
    } else {
      config_.top_k = 1;
      config_.router.weight.renormalise = false;
      config_.router.logits.bias = hf.at("router_bias");
      config_.expert.gated = false;
      config_.expert.activation =
          hf.at("dense_act_fn") == "relu" ? Activation::relu : Activation::gelu_erf;
      config_.capacity.rows = hf.at("expert_capacity").get<Index>();
    }
  }

  const MoEConfig& config() const { return config_; }
  Index tokens() const { return tokens_; }
  Index sequence() const { return sequence_; }
  bool drops() const { return config_.capacity.limited(); }

  /// "experts.3.up" -> "experts.3.w3.weight".
  std::string hf_name(const std::string& name) const {
    const bool is_switch = drops();
    if (name.starts_with("router.")) {
      return (is_switch ? "router.classifier" : "gate") + name.substr(name.find('.'));
    }
    if (name == "shared.output_gate") {
      return "shared_expert_gate.weight";
    }
    const std::size_t dot = name.rfind('.');
    const std::string tensor = name.substr(dot + 1);
    if (name.starts_with("shared.")) {
      return "shared_expert." + tensor + "_proj.weight";
    }
    const std::string number = name.substr(8, dot - 8);  // after "experts."
    if (is_switch) {
      return "experts.expert_" + number + (tensor == "up" ? ".wi" : ".wo") + ".weight";
    }
    const std::string mixtral = tensor == "gate" ? "w1" : tensor == "up" ? "w3" : "w2";
    return "experts." + number + "." + (name_ == "mixtral" ? mixtral : tensor + "_proj") +
           ".weight";
  }

 private:
  static std::string meta(const io::SafeTensors& file, const std::string& key) {
    const auto found = file.metadata().find(key);
    if (found == file.metadata().end()) {
      throw std::invalid_argument(file.file() + ": no " + key + " in its metadata");
    }
    return found->second;
  }

  std::string name_;
  MoEConfig config_;
  Index tokens_ = 0, sequence_ = 0;
};

/// One file in one scalar. Every tensor of the file must be used: see run().
template <Real T>
class Case {
 public:
  using Layer = MoELayer<T>;

  explicit Case(const io::SafeTensors& file)
      : file_(file), family_(file), layer_(family_.config(), 0) {
    layer_.for_each_parameter([&](const std::string& name, auto& parameter) {
      parameter = read<T>("weights." + family_.hf_name(name), parameter.rows(), parameter.cols());
    });
    x_ = read<T>("input.x", family_.tokens(), width());
    r_ = read<T>("input.r", family_.tokens(), width());
    call_.num_threads = 1;  // some 20 tokens
    call_.tokens.sequence_length = family_.sequence();
  }

  std::vector<Error> run() {
    y_.resize(x_.rows(), width());
    layer_.forward(x_, y_, tape_, call_);
    compare("output.y64", Kind::output, y_);
    if (std::is_same_v<T, float>) {
      compare("output.y", Kind::output, y_);
    }
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

  Index width() const { return family_.config().d_model; }

  template <class S>
  Matrix<S> read(const std::string& name, Index rows, Index cols) {
    used_.insert(name);
    return io::read_matrix<S>(file_, name, rows, cols);
  }

  void compare(const std::string& name, Kind kind, const Matrix<T>& got) {
    errors_.push_back({name, kind, relative_error(got, read<double>(name, got.rows(), got.cols())),
                       bound_of<T>(kind)});
  }

  /// Integers must be equal: the error is the number of those that are not.
  void compare_exactly(const std::string& name, const Matrix<std::int64_t>& got) {
    const auto want = read<std::int64_t>(name, got.rows(), got.cols());
    const auto wrong = (got.array() != want.array()).count();
    errors_.push_back({name, Kind::router, static_cast<double>(wrong), 0.0});
  }

  void compare_router() {
    const auto& table = tape_.routing;
    compare("router.logits", Kind::router, table.logits);
    compare("router.weights", Kind::router, table.weight);
    compare_exactly("router.indices", table.expert.template cast<std::int64_t>());
    if (family_.drops()) {
      Matrix<std::int64_t> kept(table.num_tokens(), table.top_k());
      for (Index choice = 0; choice < kept.size(); ++choice) {
        kept.data()[choice] = tape_.kept[choice] ? 1 : 0;
      }
      compare_exactly("router.kept", kept);
    }
  }

  void compare_losses() {
    const Loss none_at_all;
    compare_gradients("grad", r_, none_at_all);
    if (!family_.drops()) {
      const Loss aux = hugging_face_load_balancing_loss(tape_.routing);
      compare_loss("aux.load_balancing", aux);
      compare_aux_gradients(aux);
      if (file_.contains("input.attention_mask")) {
        const Matrix<std::uint8_t> mask = read<std::uint8_t>(
            "input.attention_mask", family_.tokens() / family_.sequence(), family_.sequence());
        const Loss masked = hugging_face_load_balancing_loss(
            tape_.routing, {mask.data(), static_cast<std::size_t>(mask.size())});
        compare_loss("aux.load_balancing_masked", masked);
        compare_gradients("grad_aux_masked", r_, T(0.01) * masked);
      }
      return;
    }
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
    const Index sequences = family_.tokens() / family_.sequence();
    for (Index s = 0; s < sequences; ++s) {
      std::vector<std::uint8_t> mask(static_cast<std::size_t>(family_.tokens()), 0);
      std::fill_n(mask.begin() + s * family_.sequence(), family_.sequence(), std::uint8_t{1});
      sum += T(1.0 / static_cast<double>(sequences)) * load_balancing_loss(table, mask);
    }
    return sum;
  }

  void compare_loss(const std::string& name, const Loss& loss) {
    compare(name, Kind::loss, Matrix<T>::Constant(1, 1, loss.value));
  }

  void compare_aux_gradients(const Loss& aux) {
    compare_gradients("grad_auxonly", Matrix<T>::Zero(r_.rows(), r_.cols()), aux);
    compare_gradients("grad_aux", r_, T(0.01) * aux);
  }

  /// All gradients with this dy and these losses. What a file leaves out is 0 where only a loss is
  /// derived (dy = 0), and as without the loss elsewhere.
  void compare_gradients(const std::string& prefix, const Matrix<T>& dy, const Loss& losses) {
    auto grads = layer_.zero_grads();
    Matrix<T> dx(x_.rows(), width());
    layer_.backward(x_, dy, tape_, dx, grads, losses.gradient);
    const auto compare_one = [&](const std::string& name, const Matrix<T>& grad) {
      const std::string full = prefix + "." + name;
      if (file_.contains(full)) {
        compare(full, Kind::gradient, grad);
      } else if (dy.isZero(0)) {
        errors_.push_back({full, Kind::gradient,
                           relative_error(grad, Matrix<T>::Zero(grad.rows(), grad.cols())), 0.0});
      } else {
        errors_.push_back(
            {full, Kind::gradient,
             relative_error(grad, read<double>("grad." + name, grad.rows(), grad.cols())),
             bound_of<T>(Kind::gradient)});
      }
    };
    compare_one("x", dx);
    layer_.for_each_parameter([&](const std::string& name, const auto&,
                                  const auto& grad) { compare_one(family_.hf_name(name), grad); },
                              grads);
  }

  const io::SafeTensors& file_;
  Family family_;
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
