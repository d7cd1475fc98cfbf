// SPDX-License-Identifier: Apache-2.0
// What passes between a user's unit and the library moe::compiled: pointers, sizes and abstract
// classes. All of it is outside of the inline namespace of the instruction set and laid out the
// same whatever a unit is compiled for. What one side allocates, that side frees: Eigen aligns
// memory by the flags of a unit. Users call moe_layer.hpp and packed_layer.hpp instead.
#pragma once

#include <Eigen/Core>
#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string_view>
#include <tuple>
#include <type_traits>

namespace moe::boundary {

using Size = std::ptrdiff_t;

/// As moe::Wide: what routing, losses and gradients are in.
template <class T>
using Wide = std::conditional_t<sizeof(T) < sizeof(float), float, T>;

/// Row-major memory of the caller, `stride` elements from one row to the next.
template <class T>
struct View {
  T* data = nullptr;
  Size rows = 0, cols = 0, stride = 0;
};

/// A trivially copyable struct of numbers and pointers, MoEConfig or CallOptions: the type is
/// another on each side, its bytes are the same.
struct Bytes {
  const void* data;
  std::size_t size;
};

/// A parameter or a gradient, (rows, cols) without gaps, in Wide<T> or else in T.
struct Tensor {
  std::string_view name;
  void* data;
  Size rows, cols;
  bool wide;
};

/// RoutingTable<W>, in the memory of a call.
template <class W>
struct Table {
  View<const std::int32_t> expert;
  View<const W> weight, probs, logits, clean_logits, noise_scale, state;
  std::span<const std::uint8_t> padding;
  bool probs_sum_to_one;
};

/// RoutingGradient<W>, in the order of its for_each.
template <class W>
using TableGradient = std::array<View<const W>, 5>;

/// A scratch or a tape.
template <class W>
class CallMemory {
 public:
  virtual ~CallMemory() = default;
  virtual Table<W> table() const = 0;
};

template <class W>
class Grads {
 public:
  virtual ~Grads() = default;
  virtual std::unique_ptr<Grads> copy() const = 0;
  /// In the order of the parameters of the layer; without names.
  virtual std::span<const Tensor> tensors() const = 0;
};

/// What a layer is, packed or not.
struct Facts {
  std::string_view instruction_set;
  Size d_in, d_out, num_experts;
  std::size_t packed_bytes;  ///< 0: not packed
};

/// A layer that infers. Every call is that of MoELayer, and throws what that throws.
template <class T>
class Inference {
 public:
  virtual ~Inference() = default;
  virtual Facts facts() const = 0;
  /// Memory that is null or of another kind of layer is made anew.
  virtual void infer(View<const T> x, View<T> y, std::unique_ptr<CallMemory<Wide<T>>>& scratch,
                     Bytes call) const = 0;
};

/// What a backward reads and writes, but for tape and gradients.
template <class T>
struct BackwardRows {
  View<const T> x, dy;
  View<T> dx;
  TableGradient<Wide<T>> losses;
};

/// A layer that trains, too.
template <class T>
class Layer : public Inference<T> {
 public:
  using W = Wide<T>;

  virtual std::unique_ptr<Layer> copy() const = 0;
  virtual std::span<const Tensor> parameters() const = 0;
  virtual std::unique_ptr<Grads<W>> zero_grads() const = 0;
  virtual void forward(View<const T> x, View<T> y, std::unique_ptr<CallMemory<W>>& tape,
                       Bytes call) const = 0;
  /// Null, and what another kind of layer made, is refused.
  virtual void backward(const BackwardRows<T>& rows, CallMemory<W>* tape,
                        Grads<W>* grads) const = 0;
  /// In the storage at a place of compiled::Storages.
  virtual std::unique_ptr<Inference<float>> pack(Size storage) const = 0;
};

template <class T>
using MakeLayer = std::unique_ptr<Layer<T>> (*)(Bytes config, std::uint64_t seed);

/// What the object of one instruction set offers.
struct InstructionSet {
  std::string_view name;
  std::tuple<MakeLayer<float>, MakeLayer<double>, MakeLayer<Eigen::bfloat16>> make;
};

/// Those that the library has and this processor runs, the best first.
std::span<const InstructionSet* const> instruction_sets();

/// The one of that name; of no name: the default. Throws std::invalid_argument if it is not there.
const InstructionSet& instruction_set(std::string_view name);

}  // namespace moe::boundary
