// SPDX-License-Identifier: Apache-2.0
// ExpertExtent<S>: how the weights of one packed expert follow each other in one piece of memory or
// of a file, so that one read brings all of them.
//
//   up | down | gate bias, up bias, down bias, output gate | zeros to the end of the page
#pragma once

#include <algorithm>
#include <concepts>
#include <cstring>
#include <memory>
#include <span>
#include <string_view>
#include <utility>

#include "packed_expert.hpp"

namespace moe::inline MOE_INSTRUCTION_SET {

/// A storage that experts can be kept in outside of memory: its PackedMatrix has a name in files,
/// as its panels are the same bytes on every instruction set, of a type Stored that stored(0, 0) is
/// the first of, and reads panels that lie elsewhere.
template <class S>
concept FileStorage = Storage<S> &&
    requires(const PackedMatrix<S>& packed, const typename PackedMatrix<S>::Layout& layout,
             std::shared_ptr<const typename PackedMatrix<S>::Stored[]> panels) {
  { PackedMatrix<S>::name_in_files } -> std::convertible_to<std::string_view>;
  { packed.stored(0, 0) } -> std::same_as<const typename PackedMatrix<S>::Stored*>;
  PackedMatrix<S>(layout, panels);
};

/// For static_assert: true, or the sentence that says which storages there are.
template <class S>
constexpr bool in_file_storage() {
  static_assert(FileStorage<S>,
                "experts are offloaded and saved in a storage whose panels are the same bytes on "
                "every instruction set: q8, q4, q4_k, mxfp4 or fp8");
  return true;
}

/// Of experts of one kind and size, d_in to d_ff to d_out.
template <FileStorage S>
class ExpertExtent {
 public:
  using W = Wide<S>;
  static constexpr std::size_t page = 4096;  ///< of which extents begin at multiples

  /// Throws std::invalid_argument unless the config is valid and the sizes are above 0.
  ExpertExtent(const ExpertConfig& config, Index d_in, Index d_ff, Index d_out)
      : config_(config), d_in_(d_in), d_ff_(d_ff), d_out_(d_out) {
    config.validate();
    detail::throw_unless(d_in > 0 && d_ff > 0 && d_out > 0, "ExpertExtent: sizes ", d_in, ", ",
                         d_ff, ", ", d_out, ", expected above 0");
  }
  static ExpertExtent of(const PackedExpert<S>& expert) {
    return {expert.config, expert.up.width(), expert.up.num_outputs(), expert.down.num_outputs()};
  }

  const ExpertConfig& config() const { return config_; }
  Index d_in() const { return d_in_; }
  Index d_ff() const { return d_ff_; }
  Index d_out() const { return d_out_; }
  /// A multiple of the page.
  std::size_t bytes() const {
    const auto shapes = expert_shapes(config_, d_in_, d_ff_, d_out_);
    Index numbers = 0;
    for (const Shape& shape :
         {shapes.gate_bias, shapes.up_bias, shapes.down_bias, shapes.output_gate}) {
      numbers += shape.rows * shape.cols;
    }
    const std::size_t sum = PackedMatrix<S>(up_layout(), nullptr).bytes() +
                            PackedMatrix<S>(down_layout(), nullptr).bytes() +
                            static_cast<std::size_t>(numbers) * sizeof(W);
    return (sum + page - 1) / page * page;
  }

  /// to (bytes()) = the expert, which is of this kind and size.
  void write(const PackedExpert<S>& expert, std::span<std::byte> to) const {
    std::byte* next = to.data();
    const auto append = [&](const void* from, std::size_t size) {
      if (size > 0) {
        std::memcpy(next, from, size);
      }
      next += size;
    };
    append(expert.up.stored(0, 0), expert.up.bytes());
    append(expert.down.stored(0, 0), expert.down.bytes());
    for_each_vector(expert,
                    [&](const Matrix<W>& vector) { append(vector.data(), bytes_of(vector)); });
    std::fill(next, to.data() + to.size(), std::byte{0});
  }

  /// The expert whose weights are read from there when it computes. It does not own them; its
  /// biases and output gate are its own, and zeros.
  PackedExpert<S> view(const std::byte* from) const {
    PackedMatrix<S> up(up_layout(), panels_at(from));
    PackedMatrix<S> down(down_layout(), panels_at(from + up.bytes()));
    return {config_, std::move(up), std::move(down)};
  }
  /// Its biases and output gate, of a view of that memory. Allocates nothing.
  void read_vectors(const std::byte* from, PackedExpert<S>& view) const {
    const std::byte* next = from + view.up.bytes() + view.down.bytes();
    for_each_vector(view, [&](Matrix<W>& vector) {
      if (vector.size() > 0) {
        std::memcpy(vector.data(), next, bytes_of(vector));
      }
      next += bytes_of(vector);
    });
  }

 private:
  using Stored = typename PackedMatrix<S>::Stored;
  using Layout = typename PackedMatrix<S>::Layout;

  Layout up_layout() const { return {config_.gated ? std::size_t{2} : 1, d_ff_, d_in_}; }
  Layout down_layout() const { return {1, d_out_, d_ff_}; }
  /// An aliasing pointer without an owner.
  static std::shared_ptr<const Stored[]> panels_at(const std::byte* from) {
    return {std::shared_ptr<const Stored[]>(), reinterpret_cast<const Stored*>(from)};
  }
  static std::size_t bytes_of(const Matrix<W>& vector) {
    return static_cast<std::size_t>(vector.size()) * sizeof(W);
  }
  template <class Expert, class Visit>
  static void for_each_vector(Expert& expert, Visit&& visit) {
    visit(expert.gate_bias);
    visit(expert.up_bias);
    visit(expert.down_bias);
    visit(expert.output_gate);
  }

  ExpertConfig config_;
  Index d_in_, d_ff_, d_out_;
};

}  // namespace moe::inline MOE_INSTRUCTION_SET
