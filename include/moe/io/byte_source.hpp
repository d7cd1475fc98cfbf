// SPDX-License-Identifier: Apache-2.0
// path -> InputFile -> Bytes: a file mapped, or read whole into memory. Readers of a format get
// bytes and know no file system. Opens regular files only, never blocks on a FIFO, and asks size
// and kind of the very file it opened.
#pragma once

#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <limits>
#include <memory>
#include <new>
#include <span>
#include <string>
#include <system_error>
#include <utility>
#include <vector>

#include "format_error.hpp"
#include "system_file.hpp"

namespace moe::inline MOE_INSTRUCTION_SET::io::detail {

/// Of the addresses, offsets and sizes of direct reads.
inline constexpr std::size_t direct_step = 4096;

/// As large as those of most systems.
inline constexpr std::size_t large_page = std::size_t{1} << 21;

struct FreePages {
  std::align_val_t alignment{direct_step};
  void operator()(std::byte* pages) const { ::operator delete(pages, alignment); }
};
using Pages = std::unique_ptr<std::byte, FreePages>;

/// Memory for direct reads, in large pages where the system has them: a disk takes so many pieces
/// of memory in a request at most, so that small pages make many requests of a large read. All of
/// it is there: a system that clears a page when it is first written would do so while reading.
inline Pages make_pages(std::size_t bytes) {
  const std::align_val_t alignment{bytes < large_page ? direct_step : large_page};
  Pages pages(static_cast<std::byte*>(::operator new(bytes, alignment)), {alignment});
  prefer_large_pages(pages.get(), bytes);
  for (std::size_t at = 0; at < bytes; at += direct_step) {
    pages.get()[at] = std::byte{0};
  }
  return pages;
}

/// Read-only bytes and whoever keeps them alive (a buffer or a mapping).
struct Bytes {
  std::shared_ptr<const void> owner;
  std::span<const std::byte> view;
};

inline Bytes bytes_of(std::vector<std::byte> buffer) {
  const auto owner = std::make_shared<const std::vector<std::byte>>(std::move(buffer));
  return {owner, {owner->data(), owner->size()}};
}

/// A regular file open for reading, by one thread at a time unless reads_apart. Every failure
/// throws FormatError naming the path.
class InputFile {
 public:
  explicit InputFile(const std::filesystem::path& path);
  ~InputFile() { close_file(fd_); }
  InputFile(const InputFile&) = delete;
  InputFile& operator=(const InputFile&) = delete;

  const std::string& name() const { return name_; }
  /// As it was when the file was opened.
  std::uint64_t size() const { return size_; }

  /// Fills `to` from the given offset, or throws where the file has meanwhile become shorter.
  void read(std::uint64_t offset, std::span<std::byte> to) const;
  /// The whole file in one buffer.
  Bytes load() const;
  /// The whole file mapped read-only and private. Not for empty files.
  Bytes map() const;
  /// Has reads go past the system's cache, where this file can be read so: memory, offset and size
  /// are multiples of direct_step from now on. Says whether they do.
  bool read_directly() const;
  /// What was read there need not stay in the system's cache.
  void forget(std::uint64_t offset, std::size_t size) const { detail::forget(fd_, offset, size); }
  /// What it is long now; less than size() once another process has cut it.
  std::uint64_t size_now() const;

 private:
  [[noreturn]] void fail(const std::string& fault) const {
    throw FormatError(name_, "", std::nullopt, fault);
  }
  [[noreturn]] void fail(const std::string& fault, const std::error_code& error) const {
    fail(joined(fault, ": ", error.message()));
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
  int fd_ = -1;
};

inline InputFile::InputFile(const std::filesystem::path& path) : name_(path.string()) {
  do {
    fd_ = open_for_reading(path);
  } while (fd_ < 0 && errno == EINTR);
  if (fd_ < 0) {
    const std::error_code error(errno, std::generic_category());
    std::error_code unknown;
    if (std::filesystem::is_directory(path, unknown)) {  // which Windows does not open
      fail("not a regular file");
    }
    fail("cannot open", error);
  }

  // From here on a throw must close the descriptor itself: the destructor of a half-made object
  // does not run.
  FileStatus status = {};
  const int error = read_status(fd_, status) == 0 ? 0 : errno;
  if (error == 0 && is_regular(status)) {
    size_ = static_cast<std::uint64_t>(status.st_size);
    return;
  }
  close_file(fd_);
  if (error != 0) {
    fail("cannot stat", {error, std::generic_category()});
  }
  fail("not a regular file");
}

inline void InputFile::read(std::uint64_t offset, std::span<std::byte> to) const {
  while (!to.empty()) {
    const int got = read_at(fd_, offset, to);
    if (got < 0 && errno == EINTR) {
      continue;
    }
    if (got < 0) {
      fail("cannot read", {errno, std::generic_category()});
    }
    if (got == 0) {
      fail_short(offset);
    }
    to = to.subspan(static_cast<std::size_t>(got));
    offset += static_cast<std::uint64_t>(got);
  }
}

inline bool InputFile::read_directly() const {
  alignas(direct_step) std::byte probe[direct_step];
  if (set_direct(fd_, true) && read_at(fd_, 0, probe) >= 0) {
    return true;
  }
  set_direct(fd_, false);  // some take the flag, and then no reads
  return false;
}

inline std::uint64_t InputFile::size_now() const {
  FileStatus status = {};
  if (read_status(fd_, status) != 0) {
    fail("cannot stat", {errno, std::generic_category()});
  }
  return static_cast<std::uint64_t>(status.st_size);
}

inline Bytes InputFile::load() const {
  const std::size_t size = size_in_memory();
  // Not a vector: that would write zeros over all of it first.
  const std::shared_ptr<std::byte[]> buffer(new std::byte[size]);
  read(0, {buffer.get(), size});
  return {buffer, {buffer.get(), size}};
}

inline Bytes InputFile::map() const {
  const std::size_t size = size_in_memory();
  std::error_code error;
  const void* const start = map_file(fd_, size, error);
  if (start == nullptr) {
    fail("cannot map", error);
  }
  const std::shared_ptr<const void> owner(start, [size](const void* p) { unmap_file(p, size); });
  return {owner, {static_cast<const std::byte*>(start), size}};
}

}  // namespace moe::inline MOE_INSTRUCTION_SET::io::detail
