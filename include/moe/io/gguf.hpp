// SPDX-License-Identifier: Apache-2.0
// *.gguf, one file or the parts of a split one -> Gguf, the values of its keys and views of its
// tensors -> TensorFiles. Knows no MoE.
//
// A file is checked in full when it is opened: stricter than ggml's own reader, which lets trailing
// bytes, dimensions of 0, values of BOOL beyond 1 and control characters in names pass. Values are
// not looked at.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "gguf_header.hpp"
#include "open_tensors.hpp"

namespace moe::inline MOE_INSTRUCTION_SET::io {

/// An open file. All that can be wrong with it is found by the three functions that make one, and
/// thrown as FormatError (std::bad_alloc aside). Shapes are row-major, so the other way round than
/// in the file: experts, outputs, inputs.
class Gguf : public OpenTensors {
 public:
  /// As those of SafeTensors.
  static Gguf map(const std::filesystem::path& path, const ReadLimits& limits = {});
  static Gguf load(const std::filesystem::path& path, const ReadLimits& limits = {});
  static Gguf from_bytes(std::vector<std::byte> bytes, std::string name = "<memory>",
                         const ReadLimits& limits = {}) {
    return Gguf(detail::bytes_of(std::move(bytes)), std::move(name), limits);
  }

  /// By their keys as they stand in the file: "general.architecture". A list has the number of its
  /// items as `integer`; the items of lists of text, and of long ones, are left out.
  const JsonFacts& facts() const { return facts_; }

 private:
  Gguf(detail::Bytes bytes, std::string file, const ReadLimits& limits)
      : OpenTensors(std::move(bytes), std::move(file)) {
    detail::GgufHeader header = detail::read_gguf_header(bytes_.view, file_, limits);
    facts_ = std::move(header.facts);
    take(std::move(header));
  }

  JsonFacts facts_;
};

/// Whether a path is that of a GGUF file, by its name.
inline bool is_gguf(const std::filesystem::path& path) { return path.extension() == ".gguf"; }

/// The file, or all of a split one's whose first is at the path: name-00001-of-00003.gguf. Throws
/// FormatError unless they are the parts of one model, each tensor in one of them.
std::vector<Gguf> map_gguf_parts(const std::filesystem::path& first, const ReadLimits& limits = {});

namespace detail {

// Done before a file is mapped or read whole, which may be anything.
inline void check_is_gguf(const InputFile& input, const ReadLimits& limits) {
  std::array<std::byte, 8> first{};
  const auto size = static_cast<std::size_t>((std::min<std::uint64_t>)(input.size(), first.size()));
  input.read(0, std::span(first).first(size));
  const std::span<const std::byte> begin(first);
  GgufCursor cursor(begin.first(size), input.name(), limits);
  check_gguf_version(cursor);
}

}  // namespace detail

inline Gguf Gguf::map(const std::filesystem::path& path, const ReadLimits& limits) {
  auto input = std::make_shared<const detail::InputFile>(path);
  detail::check_is_gguf(*input, limits);
  Gguf file(input->map(), input->name(), limits);
  file.mapped_ = std::move(input);
  return file;
}

inline Gguf Gguf::load(const std::filesystem::path& path, const ReadLimits& limits) {
  const detail::InputFile input(path);
  detail::check_is_gguf(input, limits);
  return Gguf(input.load(), input.name(), limits);
}

namespace detail {

/// A whole number of a file's keys, or `omitted`.
inline std::int64_t number_of(const Gguf& file, std::string_view key, std::int64_t omitted) {
  const auto found = file.facts().find(key);
  if (found == file.facts().end()) {
    return omitted;
  }
  if (found->second.kind != JsonFact::Kind::integer) {
    throw FormatError(
        file.file(), "", std::nullopt,
        joined("key \"", key, "\": ", found->second.shown(), ", expected a whole number"));
  }
  return found->second.integer;
}

/// "-00002-of-00003.gguf"
inline std::string end_of_part(std::int64_t number, std::int64_t count) {
  const auto digits = [](std::int64_t value) {
    const std::string text = std::to_string(value);
    return std::string(text.size() < 5 ? 5 - text.size() : 0, '0') + text;
  };
  return joined("-", digits(number + 1), "-of-", digits(count), ".gguf");
}

/// Throws unless the part says that it is this one of so many.
inline void check_part(const Gguf& part, std::int64_t number, std::int64_t count) {
  const std::int64_t its_number = number_of(part, "split.no", 0),
                     its_count = number_of(part, "split.count", 1);
  if (its_number != number || its_count != count) {
    throw FormatError(part.file(), "", std::nullopt,
                      joined("split.no ", its_number, " of split.count ", its_count, ", expected ",
                             number, " of ", count, number == 0 ? ", the first part" : ""));
  }
}

/// Throws unless no tensor is in two of the parts, and there are as many as the first one says.
inline void check_parts(const std::vector<Gguf>& parts) {
  std::set<std::string_view> names;
  for (const Gguf& part : parts) {
    for (const TensorView& tensor : part.tensors()) {
      if (!names.insert(tensor.name).second) {
        throw FormatError(
            part.file(), tensor.name, std::nullopt,
            joined("also in another part of ", parts.front().file(), ", expected in one"));
      }
    }
  }
  const auto found = static_cast<std::int64_t>(names.size());
  const std::int64_t said = number_of(parts.front(), "split.tensors.count", found);
  if (said != found) {
    throw FormatError(
        parts.front().file(), "", std::nullopt,
        joined("split.tensors.count ", said, ", but its parts have ", found, " tensors"));
  }
}

}  // namespace detail

inline std::vector<Gguf> map_gguf_parts(const std::filesystem::path& first,
                                        const ReadLimits& limits) {
  std::vector<Gguf> parts;
  parts.push_back(Gguf::map(first, limits));
  const std::int64_t count = detail::number_of(parts.front(), "split.count", 1);
  if (count < 0 || count > 65535) {  // 0: parts that were joined to one
    throw FormatError(parts.front().file(), "", std::nullopt,
                      detail::joined("split.count ", count, ", expected 0 to 65535"));
  }
  detail::check_part(parts.front(), 0, count);
  const std::string name = first.filename().string(), end = detail::end_of_part(0, count);
  if (count > 1 && !name.ends_with(end)) {
    throw FormatError(
        parts.front().file(), "", std::nullopt,
        detail::joined("the first of ", count, " parts, expected a name that ends with ", end));
  }
  for (std::int64_t number = 1; number < count; ++number) {
    const std::string part =
        name.substr(0, name.size() - end.size()) + detail::end_of_part(number, count);
    parts.push_back(Gguf::map(first.parent_path() / part, limits));
    detail::check_part(parts.back(), number, count);
  }
  detail::check_parts(parts);
  return parts;
}

}  // namespace moe::inline MOE_INSTRUCTION_SET::io
