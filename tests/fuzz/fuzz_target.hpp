// SPDX-License-Identifier: Apache-2.0
// What the fuzz targets share. A target feeds any bytes to a reader: they are read and used, or
// refused by a FormatError. Another exception, a crash or a report of a sanitizer is a finding.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "moe/io/format_error.hpp"

namespace moe::fuzz {

inline std::string_view text_of(const std::uint8_t* data, std::size_t size) {
  return {reinterpret_cast<const char*>(data), size};
}

/// A rule of the reader that its result breaks.
inline void require(bool holds) {
  if (!holds) {
    std::abort();
  }
}

/// True if `act` ran to its end, false if it threw a FormatError fit to be shown.
template <class Act>
bool succeeds(Act&& act) {
  try {
    act();
    return true;
  } catch (const io::FormatError& error) {
    const std::string_view message = error.what();
    require(!error.file().empty() && message.size() < 20'000);
    for (const char c : message) {
      require(c < 0 || c >= ' ');
    }
    return false;
  }
}

/// Touches every byte.
inline void read_all(std::span<const std::byte> bytes) {
  const std::vector<std::byte> copy(bytes.begin(), bytes.end());
  volatile std::size_t size = copy.size();
  (void)size;
}

inline void write_file(const std::filesystem::path& path, std::string_view text) {
  std::ofstream(path, std::ios::binary)
      .write(text.data(), static_cast<std::streamsize>(text.size()));
}

/// A folder of this process, which is left to whoever cleans $TMPDIR.
inline std::filesystem::path own_folder(std::string name) {
  std::string folder = (std::filesystem::temp_directory_path() / (name + "-XXXXXX")).string();
  require(::mkdtemp(folder.data()) != nullptr);
  return folder;
}

}  // namespace moe::fuzz
