// SPDX-License-Identifier: Apache-2.0
// Lanes<T>: one vector register of Eigen's as a value, so that one formula serves scalars and
// vectors; and for_lanes, which walks a row with it.
//
// Bits must not depend on where an element stands. GCC fuses a product with the sum that uses it
// or not, as it likes, also in intrinsics: therefore a formula writes every such pair as madd,
// and a function whose result may be added to something does not end in a product. Nothing is
// then left to the compiler but the sign of a NaN: each lane of each copy of the code computes the
// same number.
#pragma once

#include <algorithm>
#include <type_traits>

#include "bfloat16.hpp"
#include "mask.hpp"

namespace moe::inline MOE_INSTRUCTION_SET::kernels {

/// Scalars with a vector unit of their own; all others take plain loops.
template <class T>
concept Vectorised = std::is_same_v<T, float> || std::is_same_v<T, double>;

template <Vectorised T>
struct Lanes {
  using Packet = typename Eigen::internal::packet_traits<T>::type;
  static constexpr Index size = Eigen::internal::packet_traits<T>::size;

  using Mask = kernels::Mask<T>;

  Packet packet;

  Lanes() = default;
  /// Every lane holds the value.
  template <class N>
  requires std::is_arithmetic_v<N>
  explicit Lanes(N value) : packet(Eigen::internal::pset1<Packet>(static_cast<T>(value))) {}

  static Lanes of(const Packet& packet) {
    Lanes lanes;
    lanes.packet = packet;
    return lanes;
  }
  static Lanes load(const T* from) { return of(Eigen::internal::ploadu<Packet>(from)); }
  void store(T* to) const { Eigen::internal::pstoreu(to, packet); }

  friend Lanes operator+(const Lanes& a, const Lanes& b) {
    return of(Eigen::internal::padd(a.packet, b.packet));
  }
  friend Lanes operator-(const Lanes& a, const Lanes& b) {
    return of(Eigen::internal::psub(a.packet, b.packet));
  }
  friend Lanes operator*(const Lanes& a, const Lanes& b) {
    return of(Eigen::internal::pmul(a.packet, b.packet));
  }
  friend Lanes operator/(const Lanes& a, const Lanes& b) {
    return of(Eigen::internal::pdiv(a.packet, b.packet));
  }
  /// Flips the sign; Eigen's pnegate is 0 - a where there is AVX, and makes +0 of +0.
  friend Lanes operator-(const Lanes& a) {
    return of(Eigen::internal::pxor(a.packet, Lanes(T(-0.0)).packet));
  }
  /// The larger and the smaller; where one of them is NaN, either.
  friend Lanes larger(const Lanes& a, const Lanes& b) {
    return of(Eigen::internal::pmax(a.packet, b.packet));
  }
  friend Lanes smaller(const Lanes& a, const Lanes& b) {
    return of(Eigen::internal::pmin(a.packet, b.packet));
  }
  friend Lanes abs(const Lanes& a) { return of(Eigen::internal::pabs(a.packet)); }
  /// The magnitude, which is not negative, with the sign of `sign`.
  friend Lanes copysign(const Lanes& magnitude, const Lanes& sign) {
    return of(Eigen::internal::por(magnitude.packet,
                                   Eigen::internal::pand(sign.packet, Lanes(T(-0.0)).packet)));
  }

  friend Mask operator==(const Lanes& a, const Lanes& b) { return Mask::equal(a.packet, b.packet); }
  friend Mask operator<(const Lanes& a, const Lanes& b) { return Mask::less(a.packet, b.packet); }
  friend Mask operator<=(const Lanes& a, const Lanes& b) {
    return Mask::less_equal(a.packet, b.packet);
  }
  friend Mask operator>(const Lanes& a, const Lanes& b) { return b < a; }
  friend Mask operator>=(const Lanes& a, const Lanes& b) { return b <= a; }

  /// 0, 1, 2, ...
  static Lanes numbers() { return of(Eigen::internal::plset<Packet>(T(0))); }
};

/// a * b + c, rounded once where the machine can.
template <class T>
Lanes<T> madd(const Lanes<T>& a, const Lanes<T>& b, const Lanes<T>& c) {
  return Lanes<T>::of(Eigen::internal::pmadd(a.packet, b.packet, c.packet));
}
template <class T>
T madd(const T& a, const T& b, const T& c) {
  return a * b + c;
}

/// Each lane as T would hold it.
template <class T, class W>
Lanes<W> rounded_to(const Lanes<W>& value) {
  if constexpr (std::is_same_v<T, W>) {
    return value;
  } else {
    return Lanes<W>::of(round_packet<T>(value.packet));
  }
}

/// condition ? a : b, in each lane.
template <class T>
Lanes<T> where(const Mask<T>& condition, const Lanes<T>& a, const Lanes<T>& b) {
  return Lanes<T>::of(condition.select(a.packet, b.packet));
}
template <class T>
T where(bool condition, const T& a, const T& b) {
  return condition ? a : b;
}

/// What a row of W is computed in: Lanes<W>, or W itself where it has none.
template <class W>
struct ComputedIn {
  using type = W;
};
template <Vectorised W>
struct ComputedIn<W> {
  using type = Lanes<W>;
};
template <class W>
using LanesOr = typename ComputedIn<W>::type;

/// As the functions of Lanes.
template <class T>
requires(!Vectorised<T>) T larger(const T& a, const T& b) { return a < b ? b : a; }

/// The sum of the lanes, always in the same order.
template <class T>
T sum_of(const Lanes<T>& lanes) {
  return Eigen::internal::predux(lanes.packet);
}
template <class T>
T sum_of(const T& value) {
  return value;
}

/// The largest and the smallest of the lanes, none of which is NaN.
template <class T>
T max_of(const Lanes<T>& lanes) {
  return Eigen::internal::predux_max(lanes.packet);
}
template <class T>
T min_of(const Lanes<T>& lanes) {
  return Eigen::internal::predux_min(lanes.packet);
}
template <class T>
T max_of(const T& value) {
  return value;
}

#if defined(__GNUC__) && !defined(__clang__)
// A false alarm of GCC 12: that a vector type loses its alignment as a template argument.
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wignored-attributes"
#endif

/// A place in a row: `count` elements from `begin`, which fill the lanes but at the row's end. The
/// row may hold a narrower type than the lanes.
template <class W>
struct LanePlace {
  Index begin, count;

  /// Lanes behind the row's end are `pad`.
  template <class T>
  Lanes<W> load(const T* row, W pad = W(0)) const {
    if constexpr (std::is_same_v<T, W>) {
      if (count == Lanes<W>::size) {
        return Lanes<W>::load(row + begin);
      }
      if constexpr (masked) {
        const auto inside = Lanes<W>::of(
            Eigen::internal::ploadu<typename Lanes<W>::Packet>(row + begin, first_lanes()));
        return where(Lanes<W>::numbers() < Lanes<W>(count), inside, Lanes<W>(pad));
      }
    }
    W padded[Lanes<W>::size];
    if (count == Lanes<W>::size) {
      if constexpr (std::is_same_v<T, Eigen::half> && std::is_same_v<W, float>) {
        return Lanes<W>::of(load_step<typename Lanes<W>::Packet>(row + begin));
      }
      for (Index i = 0; i < Lanes<W>::size; ++i) {
        padded[i] = convert<W>(row[begin + i]);
      }
      return Lanes<W>::load(padded);
    }
    std::fill(padded, padded + Lanes<W>::size, pad);
    for (Index i = 0; i < count; ++i) {
      padded[i] = convert<W>(row[begin + i]);
    }
    return Lanes<W>::load(padded);
  }

  template <class T>
  void store(T* row, const Lanes<W>& value) const {
    if constexpr (std::is_same_v<T, W>) {
      if (count == Lanes<W>::size) {
        return value.store(row + begin);
      }
      if constexpr (masked) {
        return Eigen::internal::pstoreu(row + begin, value.packet, first_lanes());
      }
    }
    if (Lanes<W>::size == 1 || count == Lanes<W>::size) {
      return narrow_packet(value.packet, row + begin);
    }
    T narrowed[Lanes<W>::size];
    narrow_packet(value.packet, narrowed);
    std::copy_n(narrowed, count, row + begin);
  }

 private:
  using Traits = Eigen::internal::unpacket_traits<typename Lanes<W>::Packet>;
  static constexpr bool masked = Traits::masked_load_available && Traits::masked_store_available;

  /// A bit for each lane that is inside the row.
  auto first_lanes() const { return static_cast<typename Traits::mask_t>((1U << count) - 1U); }
};

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic pop
#endif

/// The place of one element, for scalars without lanes.
template <class W>
struct ElementPlace {
  Index begin;

  template <class T>
  W load(const T* row, const W& = W(0)) const {
    return static_cast<W>(row[begin]);
  }
  template <class T>
  void store(T* row, const W& value) const {
    row[begin] = static_cast<T>(value);
  }
};

/// Calls body(place) along a row of `size` elements; the body loads, computes in W or Lanes<W> and
/// stores. The end of a row runs the same body, with padded lanes: nothing behind it is touched.
template <class W, class Body>
void for_lanes(Index size, Body&& body) {
  if constexpr (Vectorised<W>) {
    // One copy of the body for whole lanes and the end: in two, the sign of a NaN could differ.
    for (Index begin = 0; begin < size; begin += Lanes<W>::size) {
      body(LanePlace<W>{begin, (std::min)(Lanes<W>::size, size - begin)});
    }
  } else {
    for (Index begin = 0; begin < size; ++begin) {
      body(ElementPlace<W>{begin});
    }
  }
}

}  // namespace moe::inline MOE_INSTRUCTION_SET::kernels
