// SPDX-License-Identifier: Apache-2.0
// What the machine allows, on all threads: multiply-adds from registers, and reading from memory.
// A probe takes some milliseconds, so that it can stand right beside what is measured: on a shared
// machine the roofs move from minute to minute. The read buffer is far larger than the cache: its
// probe also evicts every weight.
#pragma once

#include <unistd.h>

#include <cstring>

#include <moe/detail/parallel.hpp>
#include <moe/kernels/bfloat16.hpp>
#include <moe/storage.hpp>
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

  /// Probes FLOP/s of multiply-adds of float or double, of bfloat16 pairs summed in float, or of
  /// bytes, four summed in an integer where the machine does that, else two and two.
  template <class S>
  double multiply_add() {
    namespace ei = Eigen::internal;
    if constexpr (std::is_same_v<S, fp8>) {
      return multiply_add<Bfloat16Input>();
    } else if constexpr (!Real<S>) {
      return rate_of_bytes();
    } else if constexpr (std::is_same_v<S, bf16>) {
      return rate<float>(4, [](const auto& a, const auto& b, const auto& sum) {
        return kernels::dot_pairs(a, b, sum);
      });
    } else {
      return rate<S>(2, [](const auto& a, const auto& b, const auto& sum) {
        return ei::pmadd(sum, a, b);  // falls to a constant, while a * b + sum would grow
      });
    }
  }

  /// Probes FLOP/s of the register tile with most rows, on operands that stay in the first cache.
  template <Storage S>
  double tile() {
    using P = PackedMatrix<S>;
    using In = typename P::Input;
    using Tile = kernels::RegisterTile<In, typename P::Weight>;
    constexpr Index depth = 4096 / Tile::cols * 2 / kernels::block_size * kernels::block_size;
    const Matrix<float> w = Matrix<float>::Constant(Tile::cols, depth, 0.5f);
    const P packed({&w});
    // Rows that lie a cache line more than a power of two apart.
    constexpr Index row_size = depth / kernels::numbers_in<In> + 64 / Index{sizeof(In)} + 1;
    Matrix<In> x(Tile::rows, row_size);
    std::memset(static_cast<void*>(x.data()), 0, static_cast<std::size_t>(x.size()) * sizeof(In));
    const In* rows[Tile::rows];
    for (Index row = 0; row < Tile::rows; ++row) {
      rows[row] = &x.coeffRef(row, 0);
    }
    const Index pieces = pieces_per_thread * threads_;
    // As long as the probe of multiply-adds: a machine that sums bytes does four times as many.
    constexpr Index lanes = sizeof(Packet<float>) / sizeof(float);
    constexpr Index as_many = kernels::numbers_in < In >> 1 ? 4 : 1;
    const Index calls =
        (std::max<Index>)(1, as_many * steps_ * chains * lanes / (Tile::rows * Tile::cols * depth));
    const Stopwatch watch;
    detail::parallel_for(pieces, threads_, [&](Index, int worker) {
      alignas(64) Wide<S> sums[Tile::rows * Tile::cols];
      alignas(64) typename P::Weight
          buffer[(std::max<Index>)(1, P::buffer_size == 0 ? 0 : depth * Tile::cols)];
      const auto* panel = packed.panel(0, 0, packed.depth(), buffer);
      for (Index i = 0; i < calls; ++i) {
        kernels::multiply_tile(Tile::rows, kernels::RowPointers<In>{rows, 1},
                               kernels::Panel<In, typename P::Weight>{panel}, packed.depth(),
                               kernels::Sums<In>{sums, Tile::cols, kernels::Update::assign},
                               kernels::Ahead{});
      }
      sink(worker) += static_cast<float>(sums[0]);
    });
    return 2.0 * static_cast<double>(pieces * calls * Tile::rows * Tile::cols * depth) /
           watch.seconds();
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

  double rate_of_bytes() {
    // Where products and sums are two instructions, products of constants would be made once.
#if defined(MOE_BYTE_DOTS_OF_64)
    return rate<float>(8, [](__m512 a, __m512 /*b*/, __m512 sum) {
      const __m512i before = _mm512_castps_si512(sum);
      return _mm512_castsi512_ps(kernels::add_products(before, _mm512_castps_si512(a), before));
    });
#elif defined(MOE_BYTE_DOTS_OF_32)
    return rate<float>(8, [](__m256 a, __m256 /*b*/, __m256 sum) {
      const __m256i before = _mm256_castps_si256(sum);
      return _mm256_castsi256_ps(kernels::add_products(before, _mm256_castps_si256(a), before));
    });
#else
    return multiply_add<float>();
#endif
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
