// SPDX-License-Identifier: Apache-2.0
// A square of a matrix, transposed in registers: how a weight with contiguous columns becomes
// packets of one step of k.
#pragma once

#include "register_tile.hpp"

namespace moe::inline MOE_INSTRUCTION_SET::kernels {

#if defined(__GNUC__) && !defined(__clang__)
// Two false alarms of GCC 12: that a vector type loses its alignment as a template argument, and
// that its own AVX-512 shuffles read an undefined register.
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wignored-attributes"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif

template <class T>
using Square =
    Eigen::internal::PacketBlock<typename RegisterTile<T>::Packet, RegisterTile<T>::packet_size>;

/// Packet k = step k of each of the packet size rows, which may hold a narrower type.
template <class T, class Stored>
EIGEN_STRONG_INLINE Square<T> load_transposed(const Stored* const* rows) {
  namespace ei = Eigen::internal;
  Square<T> square;
  for (Index i = 0; i < RegisterTile<T>::packet_size; ++i) {
    square.packet[i] = load_step<typename RegisterTile<T>::Packet>(rows[i]);
  }
  ei::ptranspose(square);
  return square;
}

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic pop
#endif

}  // namespace moe::inline MOE_INSTRUCTION_SET::kernels
