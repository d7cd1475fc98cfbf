// SPDX-License-Identifier: Apache-2.0
// What an open file of tensors is, whatever its format: SafeTensors and Gguf fill it when they have
// checked a header, TensorFiles finds tensors in it.
#pragma once

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "../types.hpp"
#include "byte_source.hpp"
#include "dtype.hpp"
#include "format_error.hpp"
#include "header.hpp"

static_assert(std::endian::native == std::endian::little,
              "moe/io reads little-endian files in place: build it for a little-endian machine");

namespace moe::inline MOE_INSTRUCTION_SET::io {

/// One tensor of an open file, row-major without gaps. Its data may begin at any address: memcpy
/// it.
struct TensorView {
  std::string name;
  DType dtype = DType::BOOL;
  std::vector<Index> shape;         ///< empty for a scalar
  std::span<const std::byte> data;  ///< belongs to the OpenTensors
  std::uint64_t file_offset = 0;    ///< of data, from the first byte of the file
};

/// Views live as long as the object, and survive its being moved; a moved-from object holds no
/// tensors.
class OpenTensors {
 public:
  OpenTensors(OpenTensors&&) noexcept = default;
  OpenTensors& operator=(OpenTensors&&) noexcept = default;
  OpenTensors(const OpenTensors&) = delete;
  OpenTensors& operator=(const OpenTensors&) = delete;
  ~OpenTensors() = default;

  /// The path it was opened with.
  const std::string& file() const { return file_; }
  /// In the order of their data in the file.
  const std::vector<TensorView>& tensors() const { return tensors_; }
  bool contains(std::string_view name) const { return find(name) != nullptr; }
  /// Throws FormatError, naming the file and the tensor, where there is none of that name, or the
  /// mapped file has become shorter.
  const TensorView& at(std::string_view name) const;
  /// What was read of a mapped file is no longer the process's memory; what is touched again comes
  /// in again.
  void release_pages() const {
    if (mapped_ != nullptr) {
      detail::release_pages(bytes_.view);
    }
  }

 protected:
  OpenTensors(detail::Bytes bytes, std::string file)
      : file_(std::move(file)), bytes_(std::move(bytes)) {}
  /// The tensors of a header that is known to fit the file.
  void take(detail::Header header);

  std::string file_;
  detail::Bytes bytes_;
  std::shared_ptr<const detail::InputFile> mapped_;  // what bytes_ are a map of; null: nothing

 private:
  const TensorView* find(std::string_view name) const;

  std::vector<TensorView> tensors_;
  std::vector<std::size_t> by_name_;  // positions in tensors_, sorted by name
};

inline void OpenTensors::take(detail::Header header) {
  // All of this lies in the file, so it fits.
  const auto size_of = [](auto offset) { return static_cast<std::size_t>(offset); };
  const std::size_t data_begin = size_of(header.data_begin);
  tensors_.reserve(header.tensors.size());
  for (detail::HeaderEntry& entry : header.tensors) {
    const std::size_t begin = data_begin + size_of(entry.begin);
    const std::size_t size = size_of(entry.end - entry.begin);
    tensors_.push_back({std::move(entry.name), entry.dtype, std::move(entry.shape),
                        bytes_.view.subspan(begin, size), begin});
  }
  by_name_.resize(tensors_.size());
  for (std::size_t i = 0; i < by_name_.size(); ++i) {
    by_name_[i] = i;
  }
  std::sort(by_name_.begin(), by_name_.end(),
            [this](std::size_t a, std::size_t b) { return tensors_[a].name < tensors_[b].name; });
}

inline const TensorView* OpenTensors::find(std::string_view name) const {
  const auto found = std::lower_bound(
      by_name_.begin(), by_name_.end(), name,
      [this](std::size_t i, std::string_view key) { return tensors_[i].name < key; });
  return found != by_name_.end() && tensors_[*found].name == name ? &tensors_[*found] : nullptr;
}

inline const TensorView& OpenTensors::at(std::string_view name) const {
  const TensorView* const found = find(name);
  if (found == nullptr) {
    throw FormatError(file_, std::string(name), std::nullopt, "no tensor of this name");
  }
  if (mapped_ != nullptr && mapped_->size_now() < bytes_.view.size()) {
    throw FormatError(file_, found->name, mapped_->size_now(),
                      detail::joined("end of file, expected ", bytes_.view.size(),
                                     " bytes; the file shrank after it was mapped"));
  }
  return *found;
}

}  // namespace moe::inline MOE_INSTRUCTION_SET::io
