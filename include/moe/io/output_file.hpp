// SPDX-License-Identifier: Apache-2.0
// bytes -> OutputFile -> path: a file that is there as a whole or not at all. It is written under
// another name, brought to the disk, and only then renamed; what stood there before stays until
// then, whether the disk runs full or the process dies. Who is killed leaves a *.part behind.
#pragma once

#include <cerrno>
#include <cstddef>
#include <filesystem>
#include <random>
#include <span>
#include <string>
#include <system_error>
#include <utility>

#include "format_error.hpp"
#include "system_file.hpp"

namespace moe::inline MOE_INSTRUCTION_SET::io::detail {

/// What follows the path in the name of a file that is not finished, before a number.
inline constexpr const char* part_end = ".part";

/// Removes what writers of the path left behind who were killed.
inline void remove_parts(const std::filesystem::path& path) {
  const std::string begin = path.filename().string() + part_end;
  const std::filesystem::path folder = path.parent_path();
  std::error_code error;
  std::filesystem::directory_iterator file(folder.empty() ? "." : folder, error), end;
  for (; !error && file != end; file.increment(error)) {
    const std::string name = file->path().filename().string();
    if (name.starts_with(begin) && name.size() > begin.size() &&
        name.find_first_not_of("0123456789", begin.size()) == std::string::npos) {
      std::error_code unknown;
      std::filesystem::remove(file->path(), unknown);
    }
  }
}

/// Every failure throws FormatError naming the path, and leaves nothing behind.
class OutputFile {
 public:
  explicit OutputFile(const std::filesystem::path& path) : path_(path) {
    // Of several writers each has a name of its own, also beside what killed ones left behind.
    for (int attempt = 0; fd_ < 0; ++attempt) {
      part_ = path;
      part_ += joined(part_end, std::random_device()());
      fd_ = open_new(part_);
      if (fd_ < 0 && (errno != EEXIST || attempt == most_attempts)) {
        fail("cannot make");
      }
    }
  }
  ~OutputFile() { discard(); }
  OutputFile(const OutputFile&) = delete;
  OutputFile& operator=(const OutputFile&) = delete;

  void write(std::span<const std::byte> bytes) {
    while (!bytes.empty()) {
      const int done = write_some(fd_, bytes);
      if (done < 0 && errno == EINTR) {
        continue;
      }
      if (done <= 0) {
        fail("cannot write");
      }
      bytes = bytes.subspan(static_cast<std::size_t>(done));
    }
  }

  /// What is written next takes the place of the first bytes.
  void go_to_begin() {
    if (detail::go_to_begin(fd_) != 0) {
      fail("cannot write");
    }
  }

  /// The path has the new file after it.
  void finish() {
    if (sync_file(fd_) != 0) {
      fail("cannot write to the disk");
    }
    const int closed = close_file(std::exchange(fd_, -1));
    if (closed != 0) {
      fail("cannot write");
    }
    std::error_code error;
    std::filesystem::rename(part_, path_, error);
    if (error) {
      errno = error.value();
      fail("cannot rename to");
    }
    part_.clear();
    const std::filesystem::path folder = path_.parent_path();
    if (sync_folder(folder.empty() ? "." : folder) != 0) {
      fail("cannot bring to the disk the folder of");
    }
  }

 private:
  static constexpr int most_attempts = 100;

  void discard() {
    if (fd_ >= 0) {
      close_file(std::exchange(fd_, -1));
    }
    std::error_code unknown;
    if (!part_.empty()) {
      std::filesystem::remove(part_, unknown);
      part_.clear();
    }
  }
  [[noreturn]] void fail(const char* fault) {
    const std::error_code error(errno, std::generic_category());
    if (fd_ < 0 && error == std::errc::file_exists) {
      part_.clear();  // which is somebody else's
    }
    discard();
    throw FormatError(path_.string(), "", std::nullopt, joined(fault, ": ", error.message()));
  }

  std::filesystem::path path_, part_;
  int fd_ = -1;
};

}  // namespace moe::inline MOE_INSTRUCTION_SET::io::detail
