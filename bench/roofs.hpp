// SPDX-License-Identifier: Apache-2.0
// What the machine allows, on all threads: multiply-adds from registers, and reading from memory.
// A probe takes some milliseconds, so that it can stand right beside what is measured: on a shared
// machine the roofs move from minute to minute. The read buffer is far larger than the cache: its
// probe also evicts every weight.
#pragma once

#include <unistd.h>

#include <moe/detail/parallel.hpp>
#include <moe/kernels/bfloat16.hpp>
#include <type_traits>
#include <utility>

#include "timing.hpp"

namespace moe::bench {

/// The work is handed out in pieces, as a layer's is: a core that is busy with other work slows a
/// probe no more than it slows a layer.
class Roofs {
 public:
  Roofs(int threads, bool quick)
      : threads_(threads),
        steps_(quick ? 2'000 : 60'000),
        buffer_(static_cast<Index>(buffer_bytes(quick) / sizeof(float))),
        sink_(static_cast<std::size_t>(threads) * 64) {
    buffer_.setOnes();
  }

  /// Probes FLOP/s of multiply-adds of float or double, or of bfloat16 pairs summed in float.
  template <class S>
  double multiply_add() {
    namespace ei = Eigen::internal;
    if constexpr (std::is_same_v<S, bf16>) {
      return rate<float>(4, [](const auto& a, const auto& b, const auto& sum) {
        return kernels::dot_pairs(a, b, sum);
      });
    } else {
      return rate<S>(2, [](const auto& a, const auto& b, const auto& sum) {
        return ei::pmadd(sum, a, b);  // falls to a constant, while a * b + sum would grow
      });
    }
  }

  /// Probes bytes/s read from memory.
  double read() {
    const Stopwatch watch;
    detail::parallel_for(buffer_.size() / piece_floats, threads_, [&](Index piece, int worker) {
      sink(worker) += sum(buffer_.data() + piece * piece_floats, piece_floats / streams,
                          std::make_index_sequence<streams>());
    });
    return static_cast<double>(buffer_.size()) * sizeof(float) / watch.seconds();
  }

 private:
  template <class T>
  using Packet = typename Eigen::internal::packet_traits<T>::type;
  // Enough chains to hide the latency of a multiply-add, few enough for the registers.
  static constexpr int chains = EIGEN_ARCH_DEFAULT_NUMBER_OF_REGISTERS >= 32 ? 24 : 12;
  static constexpr Index streams = 8;
  static constexpr Index piece_floats = Index{1} << 18;  // 1 MiB
  static constexpr int pieces_per_thread = 16;

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

  /// FLOP/s of a step of so many FLOPs per lane.
  template <class T, class Step>
  double rate(int flops, Step step) {
    const Index pieces = pieces_per_thread * threads_;
    const Stopwatch watch;
    detail::parallel_for(pieces, threads_, [&](Index, int worker) {
      sink(worker) += run_chains<T>(steps_, step, std::make_index_sequence<chains>());
    });
    constexpr int lanes = static_cast<int>(sizeof(Packet<T>) / sizeof(T));
    return static_cast<double>(pieces * steps_ * flops * lanes * chains) / watch.seconds();
  }

  /// x = step(a, b, x), `chains` times side by side: nothing leaves the registers.
  template <class T, class Step, std::size_t... I>
  static float run_chains(Index steps, Step step, std::index_sequence<I...>) {
    namespace ei = Eigen::internal;
    volatile T unknown = T(0.5);  // to the compiler, so that no two chains are the same to it
    const Packet<T> a = ei::pset1<Packet<T>>(T(unknown)), b = ei::pset1<Packet<T>>(T(unknown));
    Packet<T> x[chains] = {ei::pset1<Packet<T>>(T(unknown) * static_cast<T>(I))...};
    for (Index i = 0; i < steps; ++i) {
      ((x[I] = step(a, b, x[I])), ...);
    }
    Packet<T> sum = ei::pset1<Packet<T>>(T(0));
    ((sum = ei::padd(sum, x[I])), ...);
    return static_cast<float>(ei::predux(sum));
  }

  /// Several streams side by side: one alone does not fill the memory bus.
  template <std::size_t... I>
  static float sum(const float* data, Index size, std::index_sequence<I...>) {
    namespace ei = Eigen::internal;
    constexpr Index lanes = sizeof(Packet<float>) / sizeof(float);
    Packet<float> total[] = {((void)I, ei::pset1<Packet<float>>(0.0F))...};
    for (Index i = 0; i < size; i += lanes) {
      ((total[I] =
            ei::padd(total[I], ei::ploadu<Packet<float>>(data + static_cast<Index>(I) * size + i))),
       ...);
    }
    return (ei::predux(total[I]) + ...);
  }

  /// Keeps results, so that nothing is optimised away; a cache line for each thread.
  float& sink(int worker) { return sink_[static_cast<std::size_t>(worker) * 64]; }

  int threads_;
  Index steps_;  // of a piece
  Eigen::VectorXf buffer_;
  std::vector<float> sink_;
};

}  // namespace moe::bench
