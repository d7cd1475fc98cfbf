// SPDX-License-Identifier: Apache-2.0
// What may happen to a process that writes: no room, and death. Not of Windows.
#pragma once

#if !defined(_WIN32)
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <csignal>
#include <filesystem>
#include <system_error>
#include <thread>
#include <utility>

namespace moe::io::testing {

/// While it lives no file gets larger, which write() meets as it does a full disk.
class FileSizeLimit {
 public:
  explicit FileSizeLimit(rlim_t bytes) : signal_before_(std::signal(SIGXFSZ, SIG_IGN)) {
    EXPECT_EQ(getrlimit(RLIMIT_FSIZE, &before_), 0);
    rlimit small = before_;
    small.rlim_cur = bytes;
    EXPECT_EQ(setrlimit(RLIMIT_FSIZE, &small), 0);
  }
  ~FileSizeLimit() {
    setrlimit(RLIMIT_FSIZE, &before_);
    std::signal(SIGXFSZ, signal_before_);
  }
  FileSizeLimit(const FileSizeLimit&) = delete;
  FileSizeLimit& operator=(const FileSizeLimit&) = delete;

 private:
  void (*signal_before_)(int);
  rlimit before_{};
};

/// A process that acts for ever, killed when wait() returns.
template <class Act, class Wait>
void kill_after(Act&& act, Wait&& wait) {
  const pid_t child = ::fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    try {
      for (;;) {
        act();
      }
    } catch (...) {
      ::_exit(1);
    }
  }
  wait();
  ASSERT_EQ(::kill(child, SIGKILL), 0);
  int status = 0;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  EXPECT_TRUE(WIFSIGNALED(status)) << "it ended by itself, with " << WEXITSTATUS(status);
}

/// A process that acts for ever, killed after so long.
template <class Act>
void kill_while(Act&& act, std::chrono::microseconds after) {
  kill_after(act, [&] { std::this_thread::sleep_for(after); });
}

/// Returns when another file stands at the path than did before; false if none comes in a minute.
class FileChange {
 public:
  explicit FileChange(const std::filesystem::path& path) : path_(path), before_(look()) {}
  bool wait() const {
    for (int i = 0; i < 60'000 && look() == before_; ++i) {
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
    return look() != before_;
  }

 private:
  using Look = std::pair<ino_t, std::filesystem::file_time_type>;

  // Of two files that take each other's place each has an inode of its own.
  Look look() const {
    struct stat status = {};
    std::error_code unknown;
    const auto time = std::filesystem::last_write_time(path_, unknown);
    return ::stat(path_.c_str(), &status) != 0 ? Look{} : Look{status.st_ino, time};
  }

  std::filesystem::path path_;
  Look before_;
};

}  // namespace moe::io::testing
#endif
