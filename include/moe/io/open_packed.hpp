// SPDX-License-Identifier: Apache-2.0
// A packed file -> OffloadedExperts<S>: cached, resident or mapped.
#pragma once

#include <filesystem>
#include <memory>
#include <numeric>

#include "../experts/offloaded_experts.hpp"
#include "expert_cache.hpp"
#include "mapped_experts.hpp"
#include "packed_file.hpp"

namespace moe::inline MOE_INSTRUCTION_SET::io {

/// Of the experts of a file that save_packed() wrote, so many in memory at once as the options say;
/// the others are read when they are wanted. Reads go past the system's cache where that can be.
/// Throws FormatError, with the byte, unless the file is one of experts in S, and
/// std::invalid_argument as the options say. A call throws FormatError where the file cannot be
/// read, has become shorter, or is not what was written.
template <FileStorage S>
OffloadedExperts<S> open_cached(const std::filesystem::path& path, const CacheOptions& options) {
  auto file = std::make_shared<detail::PackedFile<S>>(path);
  file->read_directly();
  const ExpertExtent<S> extent = file->extent();
  const Index experts = file->num_experts();
  ReadExpert read = [file = std::move(file)](ExpertId expert, std::span<std::byte> to) {
    file->read(expert, to);
  };
  return {extent, std::make_unique<ExpertCache>(experts, extent.bytes(), std::move(read), options)};
}

/// With all experts in memory, which are read at once.
template <FileStorage S>
OffloadedExperts<S> open_resident(const std::filesystem::path& path, int threads = 2) {
  const Index experts = detail::PackedFile<S>(path).num_experts();
  CacheOptions options{.slots = experts, .threads = threads};
  options.pinned.resize(static_cast<std::size_t>(experts));
  std::iota(options.pinned.begin(), options.pinned.end(), ExpertId{0});
  return open_cached<S>(path, options);
}

/// With as many in memory as the system finds room for. Header and table are checked; else the file
/// is trusted, see MappedExperts.
template <FileStorage S>
OffloadedExperts<S> open_mapped(const std::filesystem::path& path) {
  const detail::PackedFile<S> file(path);
  const std::size_t bytes = file.extent().bytes();
  return {file.extent(), std::make_unique<MappedExperts>(file.map(), bytes)};
}

}  // namespace moe::inline MOE_INSTRUCTION_SET::io
