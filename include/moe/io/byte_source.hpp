// SPDX-License-Identifier: Apache-2.0
// path -> InputFile -> Bytes: a file mapped, or read whole into memory. Readers of a format get
// bytes and know no file system. Opens regular files only, never blocks on a FIFO, and asks size
// and kind of the very file it opened.
#pragma once

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <limits>
#include <memory>
#include <span>
#include <string>
#include <system_error>
#include <utility>
#include <vector>

#include "format_error.hpp"

#if defined(__unix__) || defined(__APPLE__)
#define MOE_IO_POSIX 1
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#else
#define MOE_IO_POSIX 0
#include <fstream>
#endif

namespace moe::inline MOE_INSTRUCTION_SET::io::detail {

/// Read-only bytes and whoever keeps them alive (a buffer or a mapping).
struct Bytes {
  std::shared_ptr<const void> owner;
  std::span<const std::byte> view;
};

inline Bytes bytes_of(std::vector<std::byte> buffer) {
  const auto owner = std::make_shared<const std::vector<std::byte>>(std::move(buffer));
  return {owner, {owner->data(), owner->size()}};
}

/// A regular file open for reading. Every failure throws FormatError naming the path.
class InputFile {
 public:
  explicit InputFile(const std::filesystem::path& path);
#if MOE_IO_POSIX
  ~InputFile() {
    if (fd_ >= 0) {
      ::close(fd_);
    }
  }
#endif
  InputFile(const InputFile&) = delete;
  InputFile& operator=(const InputFile&) = delete;

  const std::string& name() const { return name_; }
  /// As it was when the file was opened.
  std::uint64_t size() const { return size_; }

  /// Fills `to` from the given offset, or throws where the file has meanwhile become shorter.
  void read(std::uint64_t offset, std::span<std::byte> to) const;
  /// The whole file in one buffer.
  Bytes load() const;
  /// The whole file mapped read-only and private. Not for empty files. Where there is no mmap:
  /// load().
  Bytes map() const;

 private:
  [[noreturn]] void fail(const std::string& fault) const {
    throw FormatError(name_, "", std::nullopt, fault);
  }
  [[noreturn]] void fail(const std::string& fault, int error) const {
    fail(joined(fault, ": ", std::generic_category().message(error)));
  }
  [[noreturn]] void fail_short(std::uint64_t offset) const {
    throw FormatError(name_, "", offset,
                      joined("end of file, expected ", size_, " bytes; the file shrank"));
  }
  std::size_t size_in_memory() const {
    if (size_ > static_cast<std::uint64_t>((std::numeric_limits<std::ptrdiff_t>::max)())) {
      fail(joined(size_, " bytes, too large for this address space"));
    }
    return static_cast<std::size_t>(size_);
  }

  std::string name_;
  std::uint64_t size_ = 0;
#if MOE_IO_POSIX
  int fd_ = -1;
#else
  mutable std::ifstream stream_;
#endif
};

inline Bytes InputFile::load() const {
  const std::size_t size = size_in_memory();
  // Not a vector: that would write zeros over all of it first.
  const std::shared_ptr<std::byte[]> buffer(new std::byte[size]);
  read(0, {buffer.get(), size});
  return {buffer, {buffer.get(), size}};
}

#if MOE_IO_POSIX

inline InputFile::InputFile(const std::filesystem::path& path) : name_(path.string()) {
  // O_NONBLOCK: opening a FIFO without a writer would otherwise wait for ever. No effect on regular
  // files.
  do {
    fd_ = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK);
  } while (fd_ < 0 && errno == EINTR);
  if (fd_ < 0) {
    fail("cannot open", errno);
  }

  // From here on a throw must close the descriptor itself: the destructor of a half-made object
  // does not run.
  struct ::stat status = {};
  const int error = ::fstat(fd_, &status) == 0 ? 0 : errno;
  if (error == 0 && S_ISREG(status.st_mode)) {
    size_ = static_cast<std::uint64_t>(status.st_size);
    return;
  }
  ::close(fd_);
  fd_ = -1;
  if (error != 0) {
    fail("cannot stat", error);
  }
  fail("not a regular file");
}

inline void InputFile::read(std::uint64_t offset, std::span<std::byte> to) const {
  constexpr std::size_t max_step = std::size_t{1} << 30;  // one read() moves at most 2 GiB on Linux
  while (!to.empty()) {
    const ::ssize_t got =
        ::pread(fd_, to.data(), (std::min)(to.size(), max_step), static_cast<::off_t>(offset));
    if (got < 0 && errno == EINTR) {
      continue;
    }
    if (got < 0) {
      fail("cannot read", errno);
    }
    if (got == 0) {
      fail_short(offset);
    }
    to = to.subspan(static_cast<std::size_t>(got));
    offset += static_cast<std::uint64_t>(got);
  }
}

inline Bytes InputFile::map() const {
  const std::size_t size = size_in_memory();
  void* const start = ::mmap(nullptr, size, PROT_READ, MAP_PRIVATE, fd_, 0);
  if (start == MAP_FAILED) {
    fail("cannot map", errno);
  }
  const std::shared_ptr<const void> owner(start, [size](void* mapped) { ::munmap(mapped, size); });
  return {owner, {static_cast<const std::byte*>(start), size}};
}

#else

inline InputFile::InputFile(const std::filesystem::path& path) : name_(path.string()) {
  std::error_code error;
  if (!std::filesystem::is_regular_file(path, error)) {
    fail("cannot open: not a regular file");
  }
  stream_.open(path, std::ios::binary | std::ios::ate);
  const auto end = static_cast<std::streamoff>(stream_.tellg());
  if (!stream_ || end < 0) {
    fail("cannot open");
  }
  size_ = static_cast<std::uint64_t>(end);
}

inline void InputFile::read(std::uint64_t offset, std::span<std::byte> to) const {
  stream_.seekg(static_cast<std::streamoff>(offset));
  stream_.read(reinterpret_cast<char*>(to.data()), static_cast<std::streamsize>(to.size()));
  if (!stream_) {
    fail_short(offset);
  }
}

inline Bytes InputFile::map() const { return load(); }

#endif

}  // namespace moe::inline MOE_INSTRUCTION_SET::io::detail

#undef MOE_IO_POSIX
