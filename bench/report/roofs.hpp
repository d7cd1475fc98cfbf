// SPDX-License-Identifier: Apache-2.0
// The two roofs of the machine: float32 multiply-adds from registers, and reading from memory,
// both on all threads. Probed between the cases, so that they stand for the same minutes; the best
// probe is the roof. The buffer is far larger than the cache: a probe also evicts every weight.
#pragma once

#include <unistd.h>

#include <chrono>
#include <moe/detail/parallel.hpp>
#include <moe/types.hpp>
#include <utility>
#include <vector>

namespace moe::report {

class Stopwatch {
 public:
  double seconds() const {
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count();
  }

 private:
  std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
};

/// body(thread) once on each thread.
template <class Body>
void on_all_threads([[maybe_unused]] int threads, Body&& body) {
#ifdef _OPENMP
#pragma omp parallel num_threads(threads)
  body(omp_get_thread_num());
#else
  body(0);
#endif
}

class Roofs {
 public:
  Roofs(int threads, bool quick)
      : threads_(threads),
        fma_steps_(quick ? 20'000 : 300'000),
        floats_per_thread_(buffer_bytes(quick) / sizeof(float) / static_cast<std::size_t>(threads)),
        buffers_(static_cast<std::size_t>(threads)),
        sink_(static_cast<std::size_t>(threads) * 64) {
    floats_per_thread_ -= floats_per_thread_ % (streams * 64);
    on_all_threads(threads_, [&](int t) {  // the thread that reads it writes it first
      buffers_[static_cast<std::size_t>(t)].setOnes(static_cast<Index>(floats_per_thread_));
    });
  }

  void probe() {
    fma_ = std::max(fma_, fma_rate());
    read_ = std::max(read_, read_rate());
  }

  double fma() const { return fma_; }
  double read() const { return read_; }
  double buffer_mib() const {
    return static_cast<double>(floats_per_thread_ * sizeof(float)) * threads_ / 1048576.0;
  }

 private:
  using Packet = Eigen::internal::packet_traits<float>::type;
  static constexpr int lanes = static_cast<int>(sizeof(Packet) / sizeof(float));
  // Enough chains to hide the latency of a multiply-add, few enough for the registers.
  static constexpr int chains = EIGEN_ARCH_DEFAULT_NUMBER_OF_REGISTERS >= 32 ? 24 : 12;
  static constexpr std::size_t streams = 8;

  static std::size_t buffer_bytes(bool quick) {
    std::size_t bytes = std::size_t{256} << 20;
#ifdef _SC_LEVEL3_CACHE_SIZE
    const long l3 = sysconf(_SC_LEVEL3_CACHE_SIZE);
    if (l3 > 0) {
      bytes = std::clamp<std::size_t>(4 * static_cast<std::size_t>(l3), bytes, 2 * bytes);
    }
#endif
    return quick ? bytes / 64 : bytes;
  }

  double fma_rate() {
    const Stopwatch watch;
    on_all_threads(threads_, [&](int t) {
      fma_chains(fma_steps_, &sink_[static_cast<std::size_t>(t) * 64],
                 std::make_index_sequence<chains>());
    });
    return 2.0 * lanes * chains * static_cast<double>(fma_steps_) * threads_ / watch.seconds();
  }

  /// x = x * a + b, `chains` times side by side: nothing leaves the registers.
  template <std::size_t... I>
  static void fma_chains(Index steps, float* sink, std::index_sequence<I...>) {
    namespace ei = Eigen::internal;
    volatile float unknown = 0.5F;  // to the compiler, so that no two chains are the same to it
    const Packet a = ei::pset1<Packet>(float(unknown)), b = ei::pset1<Packet>(float(unknown));
    Packet x[chains] = {ei::pset1<Packet>(float(unknown) * static_cast<float>(I))...};
    for (Index step = 0; step < steps; ++step) {
      ((x[I] = ei::pmadd(x[I], a, b)), ...);
    }
    Packet sum = ei::pset1<Packet>(0.0F);
    ((sum = ei::padd(sum, x[I])), ...);
    *sink = ei::predux(sum);
  }

  double read_rate() {
    const Stopwatch watch;
    on_all_threads(threads_, [&](int t) {
      const auto i = static_cast<std::size_t>(t);
      sink_[i * 64] = sum(buffers_[i].data(), floats_per_thread_ / streams,
                          std::make_index_sequence<streams>());
    });
    return static_cast<double>(floats_per_thread_ * sizeof(float)) * threads_ / watch.seconds();
  }

  /// Several streams side by side: one alone does not fill the memory bus.
  template <std::size_t... I>
  static float sum(const float* data, std::size_t size, std::index_sequence<I...>) {
    namespace ei = Eigen::internal;
    Packet total[] = {((void)I, ei::pset1<Packet>(0.0F))...};
    for (std::size_t i = 0; i < size; i += static_cast<std::size_t>(lanes)) {
      ((total[I] = ei::padd(total[I], ei::ploadu<Packet>(data + I * size + i))), ...);
    }
    return (ei::predux(total[I]) + ...);
  }

  int threads_;
  Index fma_steps_;
  std::size_t floats_per_thread_;
  std::vector<Eigen::VectorXf> buffers_;
  std::vector<float> sink_;  // one cache line for each thread
  double fma_ = 0, read_ = 0;
};

}  // namespace moe::report
