// SPDX-License-Identifier: Apache-2.0
// The library's side of the boundary, compiled once for each instruction set: the layers of the
// header-only library behind the abstract classes of boundary.hpp. Nothing here has a name outside
// of its object but MOE_COMPILED_ENTRY (cmake/compiled.cmake), and nothing runs before that is
// called: a processor without the instruction set may hold the object.
#include <cstring>
#include <string>
#include <vector>

#include "../layers.hpp"
#include "boundary.hpp"
#include "storages.hpp"

namespace moe::inline MOE_INSTRUCTION_SET {
namespace {

using boundary::Bytes;
using boundary::Tensor;
using boundary::View;

#define MOE_TEXT_OF(x) #x
#define MOE_TEXT(x) MOE_TEXT_OF(x)
constexpr std::string_view set_name = MOE_TEXT(MOE_INSTRUCTION_SET);

template <class Numbers>
Numbers copy_of(Bytes bytes) {
  static_assert(std::is_trivially_copyable_v<Numbers>);
  detail::throw_unless(bytes.size == sizeof(Numbers),
                       "moe::compiled: the library is of another version than the headers");
  Numbers numbers;
  std::memcpy(&numbers, bytes.data, sizeof(Numbers));
  return numbers;
}

template <class T>
auto map_of(const View<T>& view) {
  using M = std::conditional_t<std::is_const_v<T>, const Matrix<std::remove_const_t<T>>, Matrix<T>>;
  return Eigen::Map<M, 0, Eigen::OuterStride<>>(view.data, view.rows, view.cols,
                                                Eigen::OuterStride<>(view.stride));
}

template <class T>
View<const T> view_of(const GrowingMatrix<T>& m) {
  return {m.data(), m.rows(), m.cols(), m.cols()};
}

/// Memory is the Scratch or the Tape of a layer.
template <class Memory, class W>
class MemoryOf final : public boundary::CallMemory<W> {
 public:
  boundary::Table<W> table() const override {
    const auto& [expert, weight, probs, logits, clean, noise_scale, state, padding, probs_sum] =
        static_cast<const RoutingTable<W>&>(memory.routing);
    return {view_of(expert),      view_of(weight), view_of(probs), view_of(logits), view_of(clean),
            view_of(noise_scale), view_of(state),  padding,        probs_sum};
  }

  Memory memory;
  RoutingGradient<W> losses;
};

/// What `made` is if this layer's kind made it, else null.
template <class Own, class Made>
Own* own(Made* made) {
  return dynamic_cast<Own*>(made);
}

template <class Memory, class W>
MemoryOf<Memory, W>& own_or_new(std::unique_ptr<boundary::CallMemory<W>>& made) {
  using Own = MemoryOf<Memory, W>;
  if (own<Own>(made.get()) == nullptr) {
    made = std::make_unique<Own>();
  }
  return static_cast<Own&>(*made);
}

/// Visits each tensor that a tree of parameter lists has: an element of a set of experts, or the
/// list of one part.
template <class Params, class Visit>
void for_each_tensor(Params& params, const Visit& visit) {
  if constexpr (ParameterList<Params>) {
    Params::for_each([&](std::string_view, auto& tensor) { visit(tensor); }, params);
  } else {
    for (auto& part : params) {
      for_each_tensor(part, visit);
    }
  }
}

template <class T>
class GradsOf final : public boundary::Grads<Wide<T>> {
 public:
  using Grads = typename MoELayer<T>::Grads;

  explicit GradsOf(Grads values) : grads(std::move(values)) {
    const auto list = [this](Matrix<Wide<T>>& tensor) {
      if (tensor.size() > 0) {
        tensors_.push_back({{}, tensor.data(), tensor.rows(), tensor.cols(), true});
      }
    };
    for_each_tensor(grads.router, list);
    for_each_tensor(grads.experts, list);
    for_each_tensor(grads.shared, list);
  }

  std::unique_ptr<boundary::Grads<Wide<T>>> copy() const override {
    return std::make_unique<GradsOf>(grads);
  }
  std::span<const Tensor> tensors() const override { return tensors_; }

  Grads grads;

 private:
  std::vector<Tensor> tensors_;
};

template <class L, class T>
void infer(const L& layer, View<const T> x, View<T> y,
           std::unique_ptr<boundary::CallMemory<Wide<T>>>& scratch, Bytes call) {
  layer.forward(map_of(x), map_of(y), own_or_new<typename L::Scratch, Wide<T>>(scratch).memory,
                copy_of<CallOptions>(call));
}

template <class S>
class PackedOf final : public boundary::Inference<float> {
 public:
  explicit PackedOf(PackedLayer<S> layer) : layer_(std::move(layer)) {}

  boundary::Facts facts() const override {
    return {set_name, layer_.d_in(), layer_.d_out(), layer_.num_experts(), packed_bytes(layer_)};
  }
  void infer(View<const float> x, View<float> y,
             std::unique_ptr<boundary::CallMemory<float>>& scratch, Bytes call) const override {
    moe::infer(layer_, x, y, scratch, call);
  }

 private:
  PackedLayer<S> layer_;
};

template <class T>
class LayerOf final : public boundary::Layer<T> {
 public:
  using W = Wide<T>;
  using TapeMemory = MemoryOf<typename MoELayer<T>::Tape, W>;

  explicit LayerOf(MoELayer<T> layer) : layer_(std::move(layer)) {
    layer_.for_each_parameter(
        [&](const ParameterName& name, auto&) { names_.push_back(name.text()); });
    layer_.for_each_parameter([&]<class M>(const ParameterName&, M& tensor) {
      tensors_.push_back({names_[tensors_.size()], tensor.data(), tensor.rows(), tensor.cols(),
                          std::same_as<typename M::Scalar, W>});
    });
  }

  boundary::Facts facts() const override {
    return {set_name, layer_.d_in(), layer_.d_out(), layer_.num_experts(), 0};
  }
  void infer(View<const T> x, View<T> y, std::unique_ptr<boundary::CallMemory<W>>& scratch,
             Bytes call) const override {
    moe::infer(layer_, x, y, scratch, call);
  }

  std::unique_ptr<boundary::Layer<T>> copy() const override {
    return std::make_unique<LayerOf>(layer_);
  }
  std::span<const Tensor> parameters() const override { return tensors_; }
  std::unique_ptr<boundary::Grads<W>> zero_grads() const override {
    return std::make_unique<GradsOf<T>>(layer_.zero_grads());
  }

  void forward(View<const T> x, View<T> y, std::unique_ptr<boundary::CallMemory<W>>& tape,
               Bytes call) const override {
    layer_.forward(map_of(x), map_of(y), own_or_new<typename MoELayer<T>::Tape>(tape).memory,
                   copy_of<CallOptions>(call));
  }
  void backward(const boundary::BackwardRows<T>& rows, boundary::CallMemory<W>* tape,
                boundary::Grads<W>* grads) const override {
    TapeMemory* own_tape = own<TapeMemory>(tape);
    detail::throw_unless(own_tape != nullptr,
                         "MoELayer: the tape is of another layer, expected this one's");
    GradsOf<T>* own_grads = own<GradsOf<T>>(grads);
    detail::throw_unless(own_grads != nullptr, "MoELayer: the gradients are of another layer");
    const View<const W>* from = rows.losses.data();
    RoutingGradient<W>::for_each(
        [&](std::string_view, GrowingMatrix<W>& tensor) { tensor = map_of(*from++); },
        own_tape->losses);
    layer_.backward(map_of(rows.x), map_of(rows.dy), own_tape->memory, map_of(rows.dx),
                    own_grads->grads, own_tape->losses);
  }

  std::unique_ptr<boundary::Inference<float>> pack(boundary::Size storage) const override {
    return compiled::Storages::make_of<boundary::Inference<float>>(
        storage, [&]<class S>(std::type_identity<S>) {
          return std::make_unique<PackedOf<S>>(moe::pack<S>(layer_));
        });
  }

 private:
  MoELayer<T> layer_;
  std::vector<std::string> names_;
  std::vector<Tensor> tensors_;
};

template <class T>
std::unique_ptr<boundary::Layer<T>> make_layer(Bytes config, std::uint64_t seed) {
  return std::make_unique<LayerOf<T>>(MoELayer<T>(copy_of<MoEConfig>(config), seed));
}

constinit const boundary::InstructionSet set{
    set_name, {make_layer<float>, make_layer<double>, make_layer<bf16>}};

}  // namespace
}  // namespace moe::inline MOE_INSTRUCTION_SET

extern "C" const moe::boundary::InstructionSet* MOE_COMPILED_ENTRY();
extern "C" const moe::boundary::InstructionSet* MOE_COMPILED_ENTRY() { return &moe::set; }
