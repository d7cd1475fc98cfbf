// SPDX-License-Identifier: Apache-2.0
// The Place of a parameter whose weight lies in several tensors -> the same place in what these
// decode to, and the parameter out of it.
#pragma once

#include <optional>
#include <utility>
#include <vector>

#include "encoded_weight.hpp"
#include "place.hpp"

namespace moe::inline MOE_INSTRUCTION_SET::io {

/// A weight and where in what it decodes to a parameter is.
struct EncodedPlace {
  EncodedWeight weight;
  Place place;
};

namespace detail {

/// Of a matrix whose inputs and outputs change places.
inline Place with_outputs_first(Place place) {
  Index& rows = *(place.shape.end() - 2);
  Index& cols = place.shape.back();
  const Index size = rows * cols, width = cols, height = rows;
  const auto turn = [&](Index at) {
    return at / size * size + at % size % width * height + at % size / width;
  };
  place.first = turn(place.first);
  place.row_step = turn(place.row_step);
  place.col_step = turn(place.col_step);
  std::swap(rows, cols);
  return place;
}

}  // namespace detail

/// The parameter at a place, if the files have codes of it. Nothing if there are floats, or no
/// tensor of any name that it may have. Throws as encoding_of() and EncodedWeight.
inline std::optional<EncodedPlace> encoded_place(TensorFiles& files, const Place& place) {
  if (files.contains(place.tensor) &&
      detail::visit_weight_type(files.at(place.tensor).view.dtype, [](auto) {})) {
    return std::nullopt;
  }
  const Encoding* const encoding = encoding_of(files, place.tensor);
  if (encoding == nullptr) {
    return std::nullopt;
  }
  const bool turns = encoding->outputs_first && place.col_step != 1 && place.shape.size() > 1;
  Place its_place = turns ? detail::with_outputs_first(place) : place;
  EncodedWeight weight(files, place.tensor, *encoding, its_place.shape);
  return EncodedPlace{std::move(weight), std::move(its_place)};
}

/// parameter = what stands at its place, each value rounded once to T.
template <class T>
void read_place(const EncodedPlace& from, MatrixRef<T> parameter) {
  const Place& place = from.place;
  const Index width = from.weight.width();
  const bool by_rows = place.col_step == 1;
  std::vector<double> values(static_cast<std::size_t>(width));
  for (Index line = 0; line < (by_rows ? parameter.rows() : parameter.cols()); ++line) {
    const Index first = place.first + line * (by_rows ? place.row_step : place.col_step);
    from.weight.read_row(first / width, values.data());
    Index at = first % width;
    for (Index i = 0; i < (by_rows ? parameter.cols() : parameter.rows()); ++i) {
      (by_rows ? parameter(line, i) : parameter(i, line)) =
          kernels::convert<T>(values[static_cast<std::size_t>(at)]);
      at += by_rows ? 1 : place.row_step;
    }
  }
}

}  // namespace moe::inline MOE_INSTRUCTION_SET::io
