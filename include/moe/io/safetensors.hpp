// SPDX-License-Identifier: Apache-2.0
// *.safetensors -> SafeTensors, typed and shaped views of the file's bytes -> read_matrix() ->
// whoever owns the parameters. Knows no MoE.
//
// A file is checked in full when it is opened; stricter than the reference reader in Rust, which
// lets repeated keys, unknown fields, empty names, control characters in names, a null __metadata__
// and any rank pass. Values are not looked at: NaN and Inf are legal weights.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include "../types.hpp"
#include "byte_source.hpp"
#include "dtype.hpp"
#include "elements.hpp"
#include "format_error.hpp"
#include "header.hpp"
#include "header_check.hpp"
#include "open_tensors.hpp"

namespace moe::inline MOE_INSTRUCTION_SET::io {

/// An open file. All that can be wrong with it is found by the three functions that make one, and
/// thrown as FormatError (std::bad_alloc aside).
class SafeTensors : public OpenTensors {
 public:
  /// Maps the file, read-only, and keeps it open: costs the header only, other pages come in as
  /// they are touched. Once another process has shortened the file, at() throws; but a view of
  /// before must not be touched then, which raises SIGBUS, and what is overwritten in place changes
  /// under the views: use load() where that can happen.
  static SafeTensors map(const std::filesystem::path& path, const ReadLimits& limits = {});
  /// Reads the whole file into memory first.
  static SafeTensors load(const std::filesystem::path& path, const ReadLimits& limits = {});
  /// bytes: a whole file. name stands for the file in messages.
  static SafeTensors from_bytes(std::vector<std::byte> bytes, std::string name = "<memory>",
                                const ReadLimits& limits = {}) {
    return SafeTensors(detail::bytes_of(std::move(bytes)), std::move(name), limits);
  }

  const std::map<std::string, std::string>& metadata() const { return metadata_; }

 private:
  SafeTensors(detail::Bytes bytes, std::string file, const ReadLimits& limits)
      : OpenTensors(std::move(bytes), std::move(file)) {
    detail::Header header = detail::read_header(bytes_.view, file_, limits);
    metadata_ = std::move(header.metadata);
    take(std::move(header));
  }

  std::map<std::string, std::string> metadata_;
};

/// Copies a tensor into a row-major matrix and converts its elements:
///   to float, double         from F64, F32, F16, BF16, I8 ... U64: exact where T can hold it, else
///                            rounded to nearest (Inf beyond the range of float); from F8_E4M3,
///                            F8_E5M2, F8_E8M0: exact, without the scale that another tensor has
///   to Eigen::half, bfloat16 from F32, F16, BF16: the same
///   to an integer            from I8 ... U64: exact; throws where a value does not fit
/// The last dimension is cols, all before it together are rows: [cols] is one row, [a, b, cols] has
/// a * b rows, a scalar is (1, 1). Throws FormatError unless there is a tensor of this name, this
/// shape and one of these dtypes.
template <Readable T>
Matrix<T> read_matrix(const SafeTensors& file, std::string_view name, Index rows, Index cols);

namespace detail {

// Done before a file is mapped or read whole: it may be a terabyte of something else.
inline void check_length(const InputFile& input, const ReadLimits& limits) {
  std::array<std::byte, length_bytes> first{};
  const auto size = static_cast<std::size_t>(std::min<std::uint64_t>(input.size(), first.size()));
  input.read(0, std::span(first).first(size));
  header_length(std::span(first).first(size), input.size(), input.name(), limits);
}

}  // namespace detail

inline SafeTensors SafeTensors::map(const std::filesystem::path& path, const ReadLimits& limits) {
  auto input = std::make_shared<const detail::InputFile>(path);
  detail::check_length(*input, limits);
  SafeTensors file(input->map(), input->name(), limits);
  file.mapped_ = std::move(input);
  return file;
}

inline SafeTensors SafeTensors::load(const std::filesystem::path& path, const ReadLimits& limits) {
  const detail::InputFile input(path);
  detail::check_length(input, limits);
  return SafeTensors(input.load(), input.name(), limits);
}

namespace detail {

inline void check_matrix_shape(const TensorView& tensor, Index rows, Index cols,
                               const std::string& file) {
  Index leading = 1;  // cannot overflow: see byte_size()
  for (std::size_t i = 0; i + 1 < tensor.shape.size(); ++i) {
    leading *= tensor.shape[i];
  }
  const Index last = tensor.shape.empty() ? 1 : tensor.shape.back();
  if (leading == rows && last == cols) {
    return;
  }
  throw FormatError(file, tensor.name, tensor.file_offset,
                    joined(dtype_and_shape(tensor.dtype, tensor.shape), ", expected a matrix of (",
                           rows, ", ", cols, ")"));
}

}  // namespace detail

template <Readable T>
Matrix<T> read_matrix(const SafeTensors& file, std::string_view name, Index rows, Index cols) {
  const TensorView& tensor = file.at(name);
  detail::check_matrix_shape(tensor, rows, cols, file.file());
  Matrix<T> matrix(rows, cols);
  const bool known =
      detail::visit_element_type(tensor.dtype, [&]<class From>(std::type_identity<From>) {
        if constexpr (detail::converts<From, T>) {
          const std::size_t done = detail::copy_elements<From>(tensor.data, matrix.data());
          if (done < static_cast<std::size_t>(matrix.size())) {
            throw FormatError(
                file.file(), tensor.name, tensor.file_offset + done * sizeof(From),
                detail::joined("the value does not fit an integer of ", 8 * sizeof(T), " bits"));
          }
        }
        return detail::converts<From, T>;
      });
  if (!known) {
    throw FormatError(
        file.file(), tensor.name, tensor.file_offset,
        detail::joined("dtype ", io::name(tensor.dtype), " cannot be read as ",
                       Integer<T> ? "integers of " : "floats of ", 8 * sizeof(T), " bits"));
  }
  return matrix;
}

}  // namespace moe::inline MOE_INSTRUCTION_SET::io
