// SPDX-License-Identifier: Apache-2.0
// compiled::MoELayer: the layer of a config, from the library moe::compiled. It is used as
// moe::MoELayer is and computes the same, in the instruction set that the processor has; a unit
// that includes it compiles no layer.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string_view>
#include <utility>

#include "../call_options.hpp"
#include "../parameters.hpp"
#include "call_memory.hpp"

namespace moe::inline MOE_INSTRUCTION_SET::compiled {

/// The gradients of a layer, or the moments of an optimiser, in float at least.
template <class W>
class LayerGrads {
 public:
  explicit LayerGrads(std::unique_ptr<boundary::Grads<W>> grads) : grads_(std::move(grads)) {}
  LayerGrads(const LayerGrads& other) : grads_(other.grads_ ? other.grads_->copy() : nullptr) {}
  LayerGrads& operator=(const LayerGrads& other) { return *this = LayerGrads(other); }
  LayerGrads(LayerGrads&&) noexcept = default;
  LayerGrads& operator=(LayerGrads&&) noexcept = default;
  ~LayerGrads() = default;

  /// Those of the layer's parameters, in their order, for the layer.
  std::span<const boundary::Tensor> tensors() const {
    return grads_ ? grads_->tensors() : std::span<const boundary::Tensor>();
  }
  boundary::Grads<W>* memory() const { return grads_.get(); }

 private:
  std::unique_ptr<boundary::Grads<W>> grads_;
};

/// T is float, double or bf16. Every call does and throws what that of moe::MoELayer does. The
/// layer is const in use and may be shared by threads; a copy has parameters of its own. One that
/// was moved from throws std::invalid_argument, as do gradients and tapes of other layers.
template <Scalar T>
class MoELayer {
 public:
  using W = Wide<T>;
  using Grads = LayerGrads<W>;

  struct Scratch : CallMemory<W> {};
  struct Tape : CallMemory<W> {};

  /// Random weights from the seed. Throws std::invalid_argument also for an instruction set that is
  /// none of instruction_sets(); without a name it is the default.
  MoELayer(const MoEConfig& config, std::uint64_t seed, std::string_view instruction_set = {})
      : layer_(std::get<boundary::MakeLayer<T>>(boundary::instruction_set(instruction_set).make)(
            bytes_of(config), seed)) {}
  MoELayer(const MoELayer& other) : layer_(other.layer().copy()) {}
  MoELayer& operator=(const MoELayer& other) { return *this = MoELayer(other); }
  MoELayer(MoELayer&&) noexcept = default;
  MoELayer& operator=(MoELayer&&) noexcept = default;
  ~MoELayer() = default;

  Index d_in() const { return layer().facts().d_in; }
  Index d_out() const { return layer().facts().d_out; }
  Index num_experts() const { return layer().facts().num_experts; }
  std::string_view instruction_set() const { return layer().facts().instruction_set; }

  /// Inference: y (N, d_out) = layer(x (N, d_in)); N may be 0, y may be x itself.
  void forward(ConstMatrixRef<T> x, MatrixRef<T> y, Scratch& scratch,
               const CallOptions& call = {}) const {
    scratch.fill(
        [&](auto& memory) { layer().infer(view_of<T>(x), view_of<T>(y), memory, bytes_of(call)); });
  }
  /// Training: the same y, and a tape for backward. y must not overlap x.
  void forward(ConstMatrixRef<T> x, MatrixRef<T> y, Tape& tape,
               const CallOptions& call = {}) const {
    tape.fill([&](auto& memory) {
      layer().forward(view_of<T>(x), view_of<T>(y), memory, bytes_of(call));
    });
  }

  /// dx (N, d_in) = and grads +=, from dy (N, d_out), the x and the tape of a forward, and the
  /// gradient of losses on tape.routing. The tape may be used again.
  void backward(ConstMatrixRef<T> x, ConstMatrixRef<T> dy, Tape& tape, MatrixRef<T> dx,
                Grads& grads, const RoutingGradient<W>& losses = {}) const {
    boundary::BackwardRows<T> rows{view_of<T>(x), view_of<T>(dy), view_of<T>(dx), {}};
    auto* tensor = rows.losses.data();
    RoutingGradient<W>::for_each(
        [&](std::string_view, const GrowingMatrix<W>& gradient) {
          *tensor++ = {gradient.data(), gradient.rows(), gradient.cols(), gradient.cols()};
        },
        losses);
    layer().backward(rows, tape.memory(), grads.memory());
  }

  /// Gradients of zero.
  Grads zero_grads() const { return Grads(layer().zero_grads()); }

  /// visit(name, parameter, grad...) for each tensor: an Eigen::Map of the layer's memory, which is
  /// read and written, not resized. A name is a ParameterName, and also taken as a string.
  template <class Visit, class... G>
  void for_each_parameter(Visit&& visit, G&... grads) {
    walk<Matrix<T>, Matrix<W>>(visit, grads...);
  }
  template <class Visit, class... G>
  void for_each_parameter(Visit&& visit, G&... grads) const {
    walk<const Matrix<T>, const Matrix<W>>(visit, grads...);
  }

  /// What the library calls this layer.
  const boundary::Layer<T>& layer() const {
    moe::detail::throw_unless(layer_ != nullptr, "MoELayer: it was moved from");
    return *layer_;
  }

 private:
  template <class M>
  static Eigen::Map<M> map(const boundary::Tensor& tensor) {
    return {static_cast<typename M::Scalar*>(tensor.data), tensor.rows, tensor.cols};
  }
  template <class G>
  using GradMatrix = std::conditional_t<std::is_const_v<G>, const Matrix<W>, Matrix<W>>;

  template <class M, class WideM, class Visit, class... G>
  void walk(Visit& visit, G&... grads) const {
    const std::span<const boundary::Tensor> parameters = layer().parameters();
    (check_grads(parameters, grads.tensors()), ...);
    for (std::size_t i = 0; i < parameters.size(); ++i) {
      const ParameterName name{.word = parameters[i].name};
      const auto call = [&](auto parameter, auto... maps) { visit(name, parameter, maps...); };
      if (parameters[i].wide) {
        call(map<WideM>(parameters[i]), map<GradMatrix<G>>(grads.tensors()[i])...);
      } else {
        call(map<M>(parameters[i]), map<GradMatrix<G>>(grads.tensors()[i])...);
      }
    }
  }
  static void check_grads(std::span<const boundary::Tensor> parameters,
                          std::span<const boundary::Tensor> grads) {
    bool fit = grads.size() == parameters.size();
    for (std::size_t i = 0; fit && i < grads.size(); ++i) {
      fit = grads[i].rows == parameters[i].rows && grads[i].cols == parameters[i].cols;
    }
    moe::detail::throw_unless(fit, "MoELayer: the gradients are of another layer");
  }

  std::unique_ptr<boundary::Layer<T>> layer_;
};

}  // namespace moe::inline MOE_INSTRUCTION_SET::compiled
