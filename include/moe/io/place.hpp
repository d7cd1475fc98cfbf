// SPDX-License-Identifier: Apache-2.0
// Parameters out of the tensors of a file, by their Place, and into them. Elements are rounded
// once, from whatever floats the file has.
#pragma once

#include <algorithm>
#include <array>
#include <stdexcept>
#include <string>
#include <vector>

#include "../routing/expert_table.hpp"
#include "gguf_blocks.hpp"
#include "layouts.hpp"
#include "safetensors.hpp"
#include "tensor_files.hpp"

namespace moe::inline MOE_INSTRUCTION_SET::io {

namespace detail {

/// Without dimensions of 1: a vector may be kept as a matrix of one row.
inline std::vector<Index> without_ones(std::vector<Index> shape) {
  std::erase(shape, Index{1});
  return shape;
}

/// visit(std::type_identity<C++ type>) for the floats that weights are kept in without scales;
/// false for others.
template <class Visit>
bool visit_weight_type(DType dtype, Visit&& visit) {
  return visit_element_type(dtype, [&]<class From>(std::type_identity<From> type) {
    constexpr bool is_weight = !Integer<From> && !kernels::EightBitFloat<From>;
    if constexpr (is_weight) {
      visit(type);
    }
    return is_weight;
  });
}

template <class From, class T>
void copy_place(const std::byte* data, const Place& place, MatrixRef<T> parameter) {
  constexpr Index size = sizeof(From);
  for (Index row = 0; row < parameter.rows(); ++row) {
    const std::byte* from = data + (place.first + row * place.row_step) * size;
    T* const to = &parameter.coeffRef(row, 0);
    if (place.col_step == 1) {
      copy_elements<From>({from, static_cast<std::size_t>(parameter.cols() * size)}, to);
      continue;
    }
    for (Index col = 0; col < parameter.cols(); ++col, from += place.col_step * size) {
      copy_elements<From>({from, sizeof(From)}, to + col);
    }
  }
}

/// Of whole blocks in the order of columns: see check_place().
template <class T>
void copy_blocks(const TensorView& view, const Place& place, MatrixRef<T> parameter) {
  const auto [elements, bytes] = block_size(view.dtype);
  const auto size = static_cast<Index>(elements);
  std::array<T, most_block_elements> block;
  for (Index row = 0; row < parameter.rows(); ++row) {
    const Index first = (place.first + row * place.row_step) / size;
    const std::byte* from = view.data.data() + first * static_cast<Index>(bytes);
    for (Index col = 0; col < parameter.cols(); col += size, from += bytes) {
      decode_blocks(view.dtype, from, 1, block.data());
      std::copy_n(block.data(), (std::min)(size, parameter.cols() - col),
                  &parameter.coeffRef(row, col));
    }
  }
}

}  // namespace detail

/// Throws FormatError unless the tensor is of the place's shape, and of floats of 16 bits or more
/// or of blocks that can be decoded, which rows of the parameter are whole numbers of.
inline void check_place(const FileTensor& tensor, const Place& place) {
  const TensorView& view = tensor.view;
  if (detail::without_ones(view.shape) != detail::without_ones(place.shape)) {
    throw FormatError(tensor.file, view.name, view.file_offset,
                      detail::joined(detail::dtype_and_shape(view.dtype, view.shape), ", expected ",
                                     detail::dtype_and_shape(view.dtype, place.shape)));
  }
  if (is_decodable(view.dtype)) {
    const auto size = static_cast<Index>(block_size(view.dtype).elements);
    if (place.col_step != 1 || place.first % size != 0 || place.row_step % size != 0) {
      throw FormatError(tensor.file, view.name, view.file_offset,
                        detail::joined(name(view.dtype), ", blocks of ", size,
                                       " elements, expected floats where a row is in parts"));
    }
    return;
  }
  if (!detail::visit_weight_type(view.dtype, [](auto) {})) {
    throw FormatError(
        tensor.file, view.name, view.file_offset,
        detail::joined("dtype ", name(view.dtype), ", expected F64, F32, F16 or BF16",
                       is_block(view.dtype) ? ", or blocks of Q8_0, Q4_0, Q5_0, Q4_K, Q5_K, Q6_K "
                                              "or MXFP4"
                                            : ""));
  }
}

/// parameter = what stands at its place. Throws as check_place().
template <class T>
void read_place(const FileTensor& tensor, const Place& place, MatrixRef<T> parameter) {
  check_place(tensor, place);
  if (parameter.size() == 0) {
    return;
  }
  if (is_block(tensor.view.dtype)) {
    detail::copy_blocks<T>(tensor.view, place, parameter);
    return;
  }
  detail::visit_weight_type(tensor.view.dtype, [&]<class From>(std::type_identity<From>) {
    detail::copy_place<From, T>(tensor.view.data.data(), place, parameter);
  });
}

/// The same for one part of a parameter.
template <class T>
void read_part(const FileTensor& tensor, const PartPlace& part, Matrix<T>& parameter) {
  read_place<T>(tensor, part.place, part_of(parameter, part));
}

/// A table of experts (vocabulary, k). Throws FormatError unless the tensor has that shape, and in
/// each row so many different numbers of experts.
inline ExpertTable read_expert_table(const FileTensor& tensor, Index vocabulary, Index num_experts,
                                     Index top_k) {
  const TensorView& view = tensor.view;
  const auto refuse = [&](const std::string& fault) {
    throw FormatError(tensor.file, view.name, view.file_offset, fault);
  };
  if (view.shape != std::vector<Index>{vocabulary, top_k}) {
    refuse(detail::joined(detail::dtype_and_shape(view.dtype, view.shape), ", expected integers [",
                          vocabulary, ", ", top_k, "]"));
  }
  ExpertTable table(vocabulary, top_k);
  const bool whole =
      detail::visit_element_type(view.dtype, [&]<class From>(std::type_identity<From>) {
        if constexpr (Integer<From>) {
          return detail::copy_elements<From>(view.data, table.data()) ==
                 static_cast<std::size_t>(table.size());
        }
        return false;
      });
  if (!whole) {
    refuse(detail::joined("dtype ", name(view.dtype),
                          " or a number out of range, expected numbers of experts"));
  }
  try {
    check_expert_table(table, vocabulary, num_experts, top_k);
  } catch (const std::invalid_argument& error) {
    refuse(error.what());
  }
  return table;
}

}  // namespace moe::inline MOE_INSTRUCTION_SET::io
