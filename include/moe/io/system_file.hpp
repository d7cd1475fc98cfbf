// SPDX-License-Identifier: Apache-2.0
// What systems differ in about files, as free functions over a descriptor: POSIX's own, or those of
// 64-bit Windows. A negative int that a function returns says that errno has the fault.
#pragma once

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>
#include <system_error>

#include <fcntl.h>
#include <sys/stat.h>

#include "../instruction_set.hpp"

#if defined(_WIN64)
#include <io.h>
#include <share.h>

#include <cstdio>

// As windows.h declares them, whose macros (min, max, ERROR, ...) would reach every program.
extern "C" {
struct _SECURITY_ATTRIBUTES;
__declspec(dllimport) void* __stdcall CreateFileMappingW(void* file, _SECURITY_ATTRIBUTES*,
                                                         unsigned long protection,
                                                         unsigned long size_high,
                                                         unsigned long size_low,
                                                         const wchar_t* name);
__declspec(dllimport) void* __stdcall MapViewOfFile(void* mapping, unsigned long access,
                                                    unsigned long offset_high,
                                                    unsigned long offset_low,
                                                    unsigned long long size);
__declspec(dllimport) int __stdcall UnmapViewOfFile(const void* start);
__declspec(dllimport) int __stdcall CloseHandle(void* handle);
__declspec(dllimport) unsigned long __stdcall GetLastError();
}
#else
#include <sys/mman.h>
#include <unistd.h>
#endif

namespace moe::inline MOE_INSTRUCTION_SET::io::detail {

constexpr std::size_t max_read = std::size_t{1} << 30;  // one call moves less than 2 GiB

#if defined(_WIN64)

inline int open_for_reading(const std::filesystem::path& path) {
  int fd = -1;
  errno = ::_wsopen_s(&fd, path.c_str(), _O_RDONLY | _O_BINARY | _O_NOINHERIT, _SH_DENYNO, 0);
  return fd;
}

inline int read_at(int fd, std::uint64_t offset, std::span<std::byte> to) {
  if (::_lseeki64(fd, static_cast<std::int64_t>(offset), SEEK_SET) < 0) {
    return -1;
  }
  return ::_read(fd, to.data(), static_cast<unsigned>((std::min)(to.size(), max_read)));
}

/// Whether several threads may read from one descriptor at once.
inline constexpr bool reads_apart = false;
/// As below, where the system has it.
inline bool set_direct(int, bool) { return false; }
inline void forget(int, std::uint64_t, std::size_t) {}
inline void will_need(const void*, std::size_t) {}
inline void prefer_large_pages(void*, std::size_t) {}

/// A new file: fails where there is one of this name.
inline int open_new(const std::filesystem::path& path) {
  int fd = -1;
  errno = ::_wsopen_s(&fd, path.c_str(), _O_WRONLY | _O_CREAT | _O_EXCL | _O_BINARY | _O_NOINHERIT,
                      _SH_DENYRW, _S_IREAD | _S_IWRITE);
  return fd;
}

inline int write_some(int fd, std::span<const std::byte> from) {
  return ::_write(fd, from.data(), static_cast<unsigned>((std::min)(from.size(), max_read)));
}

inline int go_to_begin(int fd) { return ::_lseeki64(fd, 0, SEEK_SET) < 0 ? -1 : 0; }

/// Until it is on the disk.
inline int sync_file(int fd) { return ::_commit(fd); }
inline int sync_folder(const std::filesystem::path&) { return 0; }

inline int close_file(int fd) { return ::_close(fd); }

using FileStatus = struct ::_stat64;
inline int read_status(int fd, FileStatus& status) { return ::_fstat64(fd, &status); }
inline bool is_regular(const FileStatus& status) { return (status.st_mode & _S_IFMT) == _S_IFREG; }

inline const void* map_file(int fd, std::size_t size, std::error_code& error) {
  constexpr unsigned long page_readonly = 2, file_map_read = 4;
  void* const file = reinterpret_cast<void*>(::_get_osfhandle(fd));
  void* const mapping = ::CreateFileMappingW(file, nullptr, page_readonly, 0, 0, nullptr);
  const void* const start =
      mapping == nullptr ? nullptr : ::MapViewOfFile(mapping, file_map_read, 0, 0, size);
  error = {static_cast<int>(::GetLastError()), std::system_category()};
  if (mapping != nullptr) {
    ::CloseHandle(mapping);  // the view keeps it, and it the file
  }
  return start;
}

inline void unmap_file(const void* start, std::size_t) { ::UnmapViewOfFile(start); }
inline void release_pages(std::span<const std::byte>) {}

#else

inline int open_for_reading(const std::filesystem::path& path) {
  // O_NONBLOCK: opening a FIFO without a writer would otherwise wait for ever. No effect on regular
  // files.
  return ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK);
}

inline int read_at(int fd, std::uint64_t offset, std::span<std::byte> to) {
  return static_cast<int>(
      ::pread(fd, to.data(), (std::min)(to.size(), max_read), static_cast<::off_t>(offset)));
}

inline constexpr bool reads_apart = true;

/// Whether reads go past the system's cache now: few systems, and not all disks, can.
inline bool set_direct([[maybe_unused]] int fd, [[maybe_unused]] bool on) {
#if defined(O_DIRECT)
  const int flags = ::fcntl(fd, F_GETFL);
  return flags >= 0 && ::fcntl(fd, F_SETFL, on ? flags | O_DIRECT : flags & ~O_DIRECT) == 0 && on;
#else
  return false;
#endif
}

/// A hint that the system need not keep what was read there.
inline void forget([[maybe_unused]] int fd, [[maybe_unused]] std::uint64_t offset,
                   [[maybe_unused]] std::size_t size) {
#if defined(POSIX_FADV_DONTNEED)
  ::posix_fadvise(fd, static_cast<::off_t>(offset), static_cast<::off_t>(size),
                  POSIX_FADV_DONTNEED);
#endif
}

/// A hint that these bytes of a mapped file will be read.
inline void will_need(const void* start, std::size_t size) {
  ::posix_madvise(const_cast<void*>(start), size, POSIX_MADV_WILLNEED);
}

/// A hint that this memory, which begins at a page, is to be in large pages as far as it goes.
inline void prefer_large_pages([[maybe_unused]] void* start, [[maybe_unused]] std::size_t size) {
#if defined(MADV_HUGEPAGE)
  ::madvise(start, size, MADV_HUGEPAGE);
#endif
}

/// A new file: fails where there is one of this name.
inline int open_new(const std::filesystem::path& path) {
  return ::open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOCTTY, 0666);
}

inline int write_some(int fd, std::span<const std::byte> from) {
  return static_cast<int>(::write(fd, from.data(), (std::min)(from.size(), max_read)));
}

inline int go_to_begin(int fd) { return ::lseek(fd, 0, SEEK_SET) < 0 ? -1 : 0; }

/// Until it is on the disk; of a folder the names in it.
inline int sync_file(int fd) { return ::fsync(fd); }
inline int sync_folder(const std::filesystem::path& folder) {
  const int fd = ::open(folder.c_str(), O_RDONLY | O_CLOEXEC | O_DIRECTORY);
  const int result = fd < 0 ? fd : ::fsync(fd);
  if (fd >= 0) {
    ::close(fd);
  }
  return result;
}

inline int close_file(int fd) { return ::close(fd); }

using FileStatus = struct ::stat;
inline int read_status(int fd, FileStatus& status) { return ::fstat(fd, &status); }
inline bool is_regular(const FileStatus& status) { return S_ISREG(status.st_mode); }

inline const void* map_file(int fd, std::size_t size, std::error_code& error) {
  const void* const start = ::mmap(nullptr, size, PROT_READ, MAP_PRIVATE, fd, 0);
  error = {errno, std::generic_category()};
  return start == MAP_FAILED ? nullptr : start;
}

inline void unmap_file(const void* start, std::size_t size) {
  ::munmap(const_cast<void*>(start), size);
}
/// Of a whole map: they are no longer the process's memory until they are read again.
inline void release_pages(std::span<const std::byte> map) {
  ::madvise(const_cast<std::byte*>(map.data()), map.size(), MADV_DONTNEED);
}

#endif

}  // namespace moe::inline MOE_INSTRUCTION_SET::io::detail
