// SPDX-License-Identifier: Apache-2.0
// A list of parameters in another scalar: what a part offers as its cast<U>().
#pragma once

#include <concepts>
#include <string_view>
#include <type_traits>

#include "../parameters.hpp"
#include "convert.hpp"

namespace moe::inline MOE_INSTRUCTION_SET {

/// The parameters in another scalar, each rounded once, walked by the list of `from`: To must have
/// every tensor of it, so that none is left behind.
template <ParameterList To, ParameterList From>
requires std::default_initializable<To> To cast_params(const From& from) {
  To to;
  From::for_each(
      [](std::string_view, const auto& tensor, auto& copy) {
        using T = typename std::remove_cvref_t<decltype(tensor)>::Scalar;
        using U = typename std::remove_reference_t<decltype(copy)>::Scalar;
        copy = tensor.unaryExpr([](const T& value) { return kernels::convert<U>(value); });
      },
      from, to);
  return to;
}

}  // namespace moe::inline MOE_INSTRUCTION_SET
