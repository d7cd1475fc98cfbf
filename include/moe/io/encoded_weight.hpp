// SPDX-License-Identifier: Apache-2.0
// A weight in several tensors of a checkpoint -> EncodedWeight: all of them checked against each
// other and against the weight's shape -> its rows as doubles, exactly, or as codes and scales.
#pragma once

#include <string>
#include <vector>

#include "encoded_values.hpp"
#include "encodings.hpp"

namespace moe::inline MOE_INSTRUCTION_SET::io {

/// Of matrices (N, K), one or more in the same tensors. Views of files that must outlive it.
class EncodedWeight {
 public:
  /// Of a weight (.., N, K) of this shape. Throws FormatError, naming file, tensor, found and
  /// expected, unless each tensor that it needs is there, and each is of its type and shape.
  EncodedWeight(TensorFiles& files, const std::string& weight, const Encoding& encoding,
                const std::vector<Index>& shape);

  const Encoding& encoding() const { return *encoding_; }
  DType codes_type() const { return codes_->dtype; }
  /// Of all tensors that belong to it.
  const std::vector<std::string>& tensors() const { return tensors_; }
  Index width() const { return width_; }

  /// to (K) = row number `row`, counted through all matrices: each value is exact, but for one
  /// rounding where a second scale divides.
  void read_row(Index row, double* to) const;

  /// Integers that are symmetric, in groups of whole blocks of 32 k.
  bool is_symmetric() const {
    return zero_point_.empty() && group_index_.empty() && shares_scales_by(32);
  }
  /// Whether each block of so many k of a row has one scale.
  bool shares_scales_by(Index block) const { return group_ % block == 0 || group_ == width_; }
  Index bits() const { return bits_; }
  /// codes (K) as they are stored, each below 2^bits().
  void read_codes(Index row, unsigned* codes) const;
  /// The scale at (row, k), as floats of any width are read.
  double scale_at(Index row, Index k) const {
    double value = 0;
    detail::read_floats(*scale_, scale_row(row) + k / group_, 1, &value);
    return value;
  }

 private:
  FileTensor use(TensorFiles& files, const std::string& name) {
    tensors_.push_back(name);
    return files.at(name);
  }
  std::vector<Index> with_lead(std::initializer_list<Index> last) const {
    std::vector<Index> shape = lead_;
    shape.insert(shape.end(), last);
    return shape;
  }
  void check_codes(const FileTensor& codes);
  void check_scale(const FileTensor& scale);
  void check_bits(const FileTensor& codes);
  void take_second_scale(TensorFiles& files, const std::string& weight);
  void take_integers(TensorFiles& files, const std::string& weight);
  void take_zero_point(const FileTensor& tensor);
  void take_group_index(const FileTensor& tensor);
  void take_unread(TensorFiles& files, const std::string& weight);

  /// The first scale of a row.
  Index scale_row(Index row) const {
    return (row / rows_ * scale_rows_ + row % rows_ / group_rows_) * scale_cols_;
  }
  Index group_of(Index k) const {
    return group_index_.empty() ? k / group_ : group_index_[static_cast<std::size_t>(k)];
  }
  void read_numbers(Index row, double* to) const;

  const Encoding* encoding_;
  std::vector<std::string> tensors_;
  std::vector<Index> lead_;  // dimensions before the last two
  Index rows_ = 0, width_ = 0;
  const TensorView* codes_ = nullptr;
  Index row_bytes_ = 0, bits_ = 0;
  const TensorView* scale_ = nullptr;
  Index group_rows_ = 1, group_ = 1, scale_rows_ = 0, scale_cols_ = 0;
  std::vector<double> second_scale_;  // of each matrix
  std::span<const std::byte> zero_point_;
  std::vector<Index> group_index_;
};

inline EncodedWeight::EncodedWeight(TensorFiles& files, const std::string& weight,
                                    const Encoding& encoding, const std::vector<Index>& shape)
    : encoding_(&encoding) {
  const FileTensor codes = use(files, detail::partner_of(weight, encoding.codes));
  if (shape.size() < 2) {
    detail::fail_at(codes, detail::dtype_and_shape(codes.view.dtype, codes.view.shape),
                    "F64, F32, F16 or BF16: it is no matrix");
  }
  lead_.assign(shape.begin(), shape.end() - 2);
  rows_ = *(shape.end() - 2);
  width_ = shape.back();
  codes_ = &codes.view;
  const FileTensor scale = use(files, detail::partner_of(weight, encoding.scale));
  scale_ = &scale.view;
  if (encoding.kind == CodeKind::integer) {
    check_bits(codes);
  } else {
    check_codes(codes);
  }
  check_scale(scale);
  if (!encoding.second_scale.empty()) {
    take_second_scale(files, weight);
  }
  take_integers(files, weight);
  take_unread(files, weight);
}

inline void EncodedWeight::check_codes(const FileTensor& codes) {
  bits_ = encoding_->kind == CodeKind::e2m1 ? 4 : 8;
  const Index group = encoding_->group;
  if (bits_ == 4 && width_ % group != 0) {
    detail::fail_at(codes, detail::joined("weights of width ", width_),
                    detail::joined("whole groups of ", group, " (", encoding_->name, ")"));
  }
  row_bytes_ = bits_ == 4 ? width_ / 2 : width_;
  detail::check_shape(codes,
                      encoding_->in_blocks ? with_lead({rows_, width_ / group, group / 2})
                                           : with_lead({rows_, row_bytes_}),
                      std::string(encoding_->name));
}

/// No tensor says the number of bits, but only one fits the number of words, from a width of 32 on.
inline void EncodedWeight::check_bits(const FileTensor& codes) {
  const Index words = codes.view.shape.empty() ? 0 : codes.view.shape.back();
  Index fits = 0;
  for (Index b = 1; b <= 8; ++b) {
    if (width_ / 32 * b + detail::quotient_up(width_ % 32 * b, 32) == words) {
      ++fits;
      bits_ = b;
    }
  }
  if (fits != 1) {
    detail::fail_at(codes, detail::dtype_and_shape(codes.view.dtype, codes.view.shape),
                    detail::joined(fits == 0 ? "" : "one number of bits that fits, not several: ",
                                   "words for 1 to 8 bits of each of ", width_, " weights"));
  }
  row_bytes_ = 4 * words;
  detail::check_shape(codes, with_lead({rows_, words}), std::string(encoding_->name));
}

inline void EncodedWeight::check_scale(const FileTensor& scale) {
  const std::vector<Index>& found = scale.view.shape;
  group_rows_ = encoding_->group_rows;
  group_ = encoding_->group;
  if (encoding_->scales_of == ScalesOf::any_groups) {
    const Index groups = found.empty() ? 0 : found.back();
    if (groups < 1 || width_ % groups != 0) {
      detail::fail_at(scale, detail::dtype_and_shape(scale.view.dtype, found),
                      detail::joined("groups that divide a width of ", width_));
    }
    group_ = width_ / groups;
  } else if (encoding_->scales_of == ScalesOf::blocks_rows_or_all) {
    if (found == with_lead({rows_, 1})) {
      group_rows_ = 1;
      group_ = width_;
    } else if (detail::without_ones(found) == detail::without_ones(lead_)) {
      group_rows_ = rows_;
      group_ = width_;
    }
  }
  group_rows_ = (std::max)(group_rows_, Index{1});
  group_ = (std::max)(group_, Index{1});
  scale_rows_ = detail::quotient_up(rows_, group_rows_);
  scale_cols_ = detail::quotient_up(width_, group_);
  if (detail::without_ones(found) != detail::without_ones(lead_) ||
      scale_rows_ * scale_cols_ != 1) {
    detail::check_shape(scale, with_lead({scale_rows_, scale_cols_}),
                        detail::joined("a scale for ", group_rows_, " x ", group_));
  }
}

inline void EncodedWeight::take_second_scale(TensorFiles& files, const std::string& weight) {
  const std::string name = detail::partner_of(weight, encoding_->second_scale);
  if (!files.contains(name)) {
    throw FormatError(files.file(), name, std::nullopt,
                      detail::joined("no tensor of this name, expected beside ",
                                     printable(codes_->name), " (", encoding_->name, ")"));
  }
  const FileTensor tensor = use(files, name);
  if (tensor.view.dtype != DType::F32 ||
      detail::without_ones(tensor.view.shape) != detail::without_ones(lead_)) {
    detail::fail_at(tensor, detail::dtype_and_shape(tensor.view.dtype, tensor.view.shape),
                    detail::dtype_and_shape(DType::F32, lead_) + ", a scale for a matrix");
  }
  second_scale_.resize(tensor.view.data.size() / sizeof(float));
  detail::read_floats(tensor.view, 0, static_cast<Index>(second_scale_.size()),
                      second_scale_.data());
}

/// What only integers may have.
inline void EncodedWeight::take_integers(TensorFiles& files, const std::string& weight) {
  const auto take = [&](std::string_view end, auto&& read) {
    const std::string name = detail::partner_of(weight, end);
    if (!end.empty() && files.contains(name)) {
      read(use(files, name));
    }
  };
  take(encoding_->shape, [&](const FileTensor& tensor) {
    const std::vector<Index> sizes = detail::read_integers(tensor, 3);
    if (sizes != std::vector<Index>{rows_, width_}) {
      std::string found = "says";
      for (const Index size : sizes) {
        found += detail::joined(" ", size);
      }
      detail::fail_at(tensor, found, detail::joined(rows_, " ", width_));
    }
  });
  take(encoding_->zero_point, [&](const FileTensor& tensor) { take_zero_point(tensor); });
  take(encoding_->group_index, [&](const FileTensor& tensor) { take_group_index(tensor); });
}

inline void EncodedWeight::take_zero_point(const FileTensor& tensor) {
  const Index words = rows_ / 32 * bits_ + detail::quotient_up(rows_ % 32 * bits_, 32);
  if (tensor.view.dtype != DType::I32) {
    detail::fail_at(tensor, detail::joined("dtype ", name(tensor.view.dtype)), "I32");
  }
  detail::check_shape(tensor, with_lead({words, scale_cols_}), "zero points, packed along rows");
  zero_point_ = tensor.view.data;
}

inline void EncodedWeight::take_group_index(const FileTensor& tensor) {
  if (!detail::is_one_of(tensor.view.dtype, "I32 I64")) {
    detail::fail_at(tensor, detail::joined("dtype ", name(tensor.view.dtype)), "I32 or I64");
  }
  detail::check_shape(tensor, {width_}, "the group of each k");
  group_index_ = detail::read_integers(tensor, static_cast<std::size_t>(width_));
  for (const Index group : group_index_) {
    if (group < 0 || group >= scale_cols_) {
      detail::fail_at(tensor, detail::joined("group ", group),
                      detail::joined("0 to ", scale_cols_ - 1));
    }
  }
}

/// Scales of activations, which belong to it all the same.
inline void EncodedWeight::take_unread(TensorFiles& files, const std::string& weight) {
  for (const std::string_view end : detail::words(detail::scales_of_activations)) {
    const std::string name = detail::partner_of(weight, end);
    if (!files.contains(name)) {
      continue;
    }
    const FileTensor tensor = use(files, name);
    if (!detail::is_one_of(tensor.view.dtype, "F32 BF16 F16") ||
        detail::without_ones(tensor.view.shape) != detail::without_ones(lead_)) {
      detail::fail_at(tensor, detail::dtype_and_shape(tensor.view.dtype, tensor.view.shape),
                      "one float of a matrix, a scale of activations");
    }
  }
}

inline void EncodedWeight::read_codes(Index row, unsigned* codes) const {
  const std::byte* const bytes = codes_->data.data() + row * row_bytes_;
  for (Index k = 0; k < width_; ++k) {
    codes[k] = detail::field_at(bytes, static_cast<std::size_t>(row_bytes_), k * bits_, bits_);
  }
}

/// Codes as numbers, without their scale.
inline void EncodedWeight::read_numbers(Index row, double* to) const {
  const std::byte* const bytes = codes_->data.data() + row * row_bytes_;
  if (encoding_->kind == CodeKind::float8) {
    detail::read_floats(*codes_, row * row_bytes_, width_, to);
    return;
  }
  if (encoding_->kind == CodeKind::e2m1) {
    for (Index k = 0; k < width_; k += 2) {
      const auto two = std::to_integer<unsigned>(bytes[k / 2]);
      to[k] = static_cast<double>(kernels::widen_e2m1(two));
      to[k + 1] = static_cast<double>(kernels::widen_e2m1(two >> 4));
    }
    return;
  }
  const std::size_t size = static_cast<std::size_t>(row_bytes_);
  const Index words = rows_ / 32 * bits_ + detail::quotient_up(rows_ % 32 * bits_, 32);
  const Index first = row / rows_ * words * scale_cols_;
  const auto zero_of = [&](Index group) {
    if (zero_point_.empty()) {
      return 1u << (bits_ - 1);
    }
    // Along the rows, which is a word in each line of the tensor.
    unsigned field = 0;
    for (Index bit = 0; bit < bits_; ++bit) {
      const Index at = row % rows_ * bits_ + bit;
      const Index word = first + at / 32 * scale_cols_ + group;
      const std::byte byte = zero_point_[static_cast<std::size_t>(4 * word + at % 32 / 8)];
      field |= (std::to_integer<unsigned>(byte) >> (at % 8) & 1u) << bit;
    }
    return field;
  };
  std::vector<double> zeros(static_cast<std::size_t>(scale_cols_));
  for (Index group = 0; group < scale_cols_; ++group) {
    zeros[static_cast<std::size_t>(group)] = zero_of(group);
  }
  for (Index k = 0; k < width_; ++k) {
    to[k] = detail::field_at(bytes, size, k * bits_, bits_) -
            zeros[static_cast<std::size_t>(group_of(k))];
  }
}

inline void EncodedWeight::read_row(Index row, double* to) const {
  read_numbers(row, to);
  std::vector<double> scales(static_cast<std::size_t>(scale_cols_));
  detail::read_floats(*scale_, scale_row(row), scale_cols_, scales.data());
  for (Index k = 0; k < width_; ++k) {
    to[k] *= scales[static_cast<std::size_t>(group_of(k))];
  }
  if (!second_scale_.empty()) {
    const double scale = second_scale_[static_cast<std::size_t>(row / rows_)];
    for (Index k = 0; k < width_; ++k) {
      to[k] = encoding_->divides ? to[k] / scale : to[k] * scale;
    }
  }
}

}  // namespace moe::inline MOE_INSTRUCTION_SET::io
