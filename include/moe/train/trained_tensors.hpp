// SPDX-License-Identifier: Apache-2.0
// What an optimiser walks: every parameter with its gradient, of layers and of the user's own
// structs alike, cut into chunks that threads share. Chunks are the same for any number of threads,
// and so are all bits.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <functional>
#include <limits>
#include <set>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "../detail/parallel.hpp"
#include "../kernels/convert.hpp"
#include "../parameters.hpp"

namespace moe::inline MOE_INSTRUCTION_SET {

namespace detail {

/// The name of a tensor of a part, made when it is called for.
struct TrainedName {
  std::string_view prefix;
  const ParameterName& name;

  std::string operator()() const { return joined(prefix, name.text()); }
  bool is(std::string_view text) const {
    return text.starts_with(prefix) && name.is(text.substr(prefix.size()));
  }
};

}  // namespace detail

/// visit(name, parameter, gradient) for every tensor of a part that trains: "layers.0." and
/// "experts.3.up" make its name. What a walk of an optimiser calls for each of its layers.
template <class Visit, class Layer, class Grads>
void visit_trained(Visit&& visit, Layer& layer, Grads& grads, std::string_view prefix = {}) {
  walk_params(
      layer, ParameterName{},
      [&](const ParameterName& name, auto& parameter, auto& gradient) {
        if (parameter.size() > 0) {
          visit(detail::TrainedName{prefix, name}, parameter, gradient);
        }
      },
      grads);
}

namespace detail {

/// A name as a walk gives it: text, or a function that makes it, as that allocates.
template <class Name>
std::string text_of(const Name& name) {
  if constexpr (requires { name(); }) {
    return name();
  } else {
    return std::string(name);
  }
}

/// Whether a name is this text; true of one that would have to be made to know.
template <class Name>
bool may_be(const Name& name, std::string_view text) {
  if constexpr (requires { name.is(text); }) {
    return name.is(text);
  } else if constexpr (std::convertible_to<const Name&, std::string_view>) {
    return std::string_view(name) == text;
  } else {
    return true;
  }
}

}  // namespace detail

/// The tensors of a walk, in its order, and memory of an optimiser for each: `moments` matrices of
/// its shape, from zero, and, where the parameter has 16 bits, a main weight in W. A walk is called
/// with a visit(name, parameter, gradient): parameters are dense matrices of W or of a scalar whose
/// Wide is W, gradients of W. A main weight is the parameter's first value, widened: what is
/// assigned to the parameter later does not reach it.
template <Real W>
class TrainedTensors {
 public:
  struct Tensor {
    std::string name;
    std::vector<Matrix<W>> moments;
    Matrix<W> main;  ///< empty where the parameter itself is as wide
    W* value = nullptr;
    const W* gradient = nullptr;
    int digits = 0;  ///< of the scalar that the parameter is in
    void* narrow = nullptr;
    /// narrow[i] = value[i], of [begin, end); none where the parameter is in W.
    void (*round)(const W* value, void* narrow, Index begin, Index end) = nullptr;

    Index size() const { return moments.empty() ? main.size() : moments.front().size(); }
  };
  /// [begin, end) of a tensor.
  struct Chunk {
    std::size_t tensor;
    Index begin, end;
  };

  explicit TrainedTensors(std::size_t num_moments) : num_moments_(num_moments) {}

  std::vector<Tensor>& tensors() { return tensors_; }
  const std::vector<Tensor>& tensors() const { return tensors_; }

  /// Looks the tensors up, and makes their memory the first time. Throws std::invalid_argument,
  /// before anything is changed, if there is none, if a gradient has not the shape of its
  /// parameter, if the first walk visits a number or a name twice, or if a tensor has not the
  /// shape, the scalar and the name that it had. Names that a function of the user's own makes are
  /// not compared: that would allocate.
  template <class Walk>
  void gather(Walk&& walk) {
    const bool first = tensors_.empty();
    std::vector<Tensor> made;
    std::vector<Bytes> bytes;
    std::size_t number = 0;
    walk([&](const auto& name, auto& parameter, const auto& gradient) {
      check_tensor(name, parameter, gradient);
      if (first) {
        made.push_back(make(name, parameter));
        const auto* const begin = reinterpret_cast<const std::byte*>(parameter.data());
        bytes.push_back(
            {begin, begin + sizeof(*parameter.data()) * static_cast<std::size_t>(parameter.size()),
             number});
      } else {
        check_known(number, name, parameter);
      }
      ++number;
    });
    detail::throw_unless(number > 0, "optimiser: the walk has no tensor, expected at least 1");
    detail::throw_unless(first || number == tensors_.size(), "optimiser: the walk has ", number,
                         " tensors, expected ", tensors_.size(), " as before");
    if (first) {
      check_apart(std::move(bytes), made);
      check_names(made);
      tensors_ = std::move(made);
      cut();
    }
    number = 0;
    walk([&](const auto&, auto& parameter, const auto& gradient) {
      point(tensors_[number++], parameter, gradient);
    });
  }

  /// The Euclidean norm of all gradients together, summed in double: NaN or Inf if one of them is.
  double gradient_norm(int threads) {
    partial_.resize(chunks_.size());
    detail::parallel_for(static_cast<Index>(chunks_.size()), threads, [&](Index number, int) {
      const Chunk& chunk = chunks_[static_cast<std::size_t>(number)];
      partial_[static_cast<std::size_t>(number)] =
          sum_of_squares(tensors_[chunk.tensor].gradient + chunk.begin, chunk.end - chunk.begin);
    });
    double sum = 0.0;
    for (const double each : partial_) {
      sum += each;
    }
    return std::sqrt(sum);
  }

  /// body(tensor, chunk) for all chunks, and rounds what has 16 bits behind it.
  template <class Body>
  void for_chunks(int threads, Body&& body) {
    detail::parallel_for(static_cast<Index>(chunks_.size()), threads, [&](Index number, int) {
      const Chunk& chunk = chunks_[static_cast<std::size_t>(number)];
      Tensor& tensor = tensors_[chunk.tensor];
      body(tensor, chunk);
      if (tensor.round != nullptr) {
        tensor.round(tensor.value, tensor.narrow, chunk.begin, chunk.end);
      }
    });
  }

 private:
  static constexpr Index chunk_size = Index{1} << 14;

  /// Where a parameter lies.
  struct Bytes {
    const std::byte *begin, *end;
    std::size_t tensor;
  };
  /// Two threads would write what lies in two tensors, and it would take two steps in one.
  static void check_apart(std::vector<Bytes> bytes, const std::vector<Tensor>& tensors) {
    std::erase_if(bytes, [](const Bytes& each) { return each.begin == each.end; });
    std::sort(bytes.begin(), bytes.end(),
              [](const Bytes& a, const Bytes& b) { return std::less<>()(a.begin, b.begin); });
    for (std::size_t i = 1; i < bytes.size(); ++i) {
      if (std::less<>()(bytes[i].begin, bytes[i - 1].end)) {
        detail::fail("optimiser: parameters ", tensors[bytes[i - 1].tensor].name, " and ",
                     tensors[bytes[i].tensor].name,
                     " share memory, expected every number in one tensor of the walk");
      }
    }
  }

  /// Groups of an optimiser and the files of a run know tensors by their names.
  static void check_names(const std::vector<Tensor>& tensors) {
    std::set<std::string_view> names;
    for (const Tensor& tensor : tensors) {
      detail::throw_unless(names.insert(tensor.name).second, "optimiser: the walk has ",
                           tensor.name, " twice, expected a name for each tensor");
    }
  }

  template <class Name, class P, class G>
  static void check_tensor(const Name& name, const P& parameter, const G& gradient) {
    using T = typename P::Scalar;
    static_assert(std::same_as<Wide<T>, W> && std::same_as<typename G::Scalar, W>,
                  "an optimiser of W takes parameters in W, or in 16 bits if W is float, and "
                  "gradients in W");
    static_assert(int{P::IsRowMajor} == int{G::IsRowMajor},
                  "a parameter and its gradient are both row-major, or neither is");
    if (parameter.outerStride() != parameter.innerSize() ||
        gradient.outerStride() != gradient.innerSize()) {
      detail::fail("optimiser: ", detail::text_of(name),
                   " or its gradient has gaps between rows, expected dense matrices");
    }
    if (parameter.rows() != gradient.rows() || parameter.cols() != gradient.cols()) {
      detail::fail("gradient ", detail::text_of(name), " is (", gradient.rows(), ", ",
                   gradient.cols(), "), expected (", parameter.rows(), ", ", parameter.cols(), ")");
    }
  }
  template <class Name, class P>
  void check_known(std::size_t number, const Name& name, const P& parameter) const {
    if (number >= tensors_.size()) {
      return;  // gather() counts them
    }
    const Matrix<W>& known = shape_of(tensors_[number]);
    if (parameter.rows() != known.rows() || parameter.cols() != known.cols()) {
      detail::fail("optimiser: parameter ", detail::text_of(name), " is (", parameter.rows(), ", ",
                   parameter.cols(), "), expected ", tensors_[number].name, " (", known.rows(),
                   ", ", known.cols(), ") as before");
    }
    if (tensors_[number].digits != digits_of<typename P::Scalar>) {
      detail::fail("optimiser: parameter ", detail::text_of(name),
                   " is in another scalar, expected that of before");
    }
    if (!detail::may_be(name, tensors_[number].name)) {
      detail::fail("optimiser: parameter ", detail::text_of(name), ", expected ",
                   tensors_[number].name, " as before");
    }
  }
  static const Matrix<W>& shape_of(const Tensor& tensor) {
    return tensor.moments.empty() ? tensor.main : tensor.moments.front();
  }

  /// Of its mantissa: no two scalars of parameters have as many.
  template <class T>
  static constexpr int digits_of = std::numeric_limits<T>::digits;

  template <class T>
  static auto rounding_to() -> decltype(Tensor::round) {
    if constexpr (std::same_as<T, W>) {
      return nullptr;
    } else {
      return [](const W* value, void* narrow, Index begin, Index end) {
        for (Index i = begin; i < end; ++i) {
          static_cast<T*>(narrow)[i] = kernels::convert<T>(value[i]);
        }
      };
    }
  }

  template <class Name, class P>
  Tensor make(const Name& name, const P& parameter) const {
    Tensor made;
    made.name = detail::text_of(name);
    made.digits = digits_of<typename P::Scalar>;
    made.round = rounding_to<typename P::Scalar>();
    made.moments.assign(num_moments_, Matrix<W>::Zero(parameter.rows(), parameter.cols()));
    if constexpr (!std::same_as<typename P::Scalar, W>) {
      made.main.resize(parameter.rows(), parameter.cols());
      for (Index i = 0; i < parameter.size(); ++i) {
        made.main.data()[i] = kernels::convert<W>(parameter.data()[i]);
      }
    }
    return made;
  }
  template <class P, class G>
  static void point(Tensor& tensor, P& parameter, const G& gradient) {
    using T = typename P::Scalar;
    tensor.gradient = gradient.data();
    if constexpr (std::same_as<T, W>) {
      tensor.value = parameter.data();
    } else {
      tensor.value = tensor.main.data();
      tensor.narrow = parameter.data();
    }
  }
  void cut() {
    for (std::size_t number = 0; number < tensors_.size(); ++number) {
      const Index size = tensors_[number].size();
      for (Index begin = 0; begin < size; begin += chunk_size) {
        chunks_.push_back({number, begin, (std::min)(begin + chunk_size, size)});
      }
    }
  }
  /// Several sums, whose order does not depend on where the numbers lie.
  static double sum_of_squares(const W* values, Index size) {
    constexpr Index lanes = 8;
    double sum[lanes] = {};
    Index i = 0;
    for (; i + lanes <= size; i += lanes) {
      for (Index lane = 0; lane < lanes; ++lane) {
        const double value = static_cast<double>(values[i + lane]);
        sum[lane] += value * value;
      }
    }
    for (; i < size; ++i) {
      const double value = static_cast<double>(values[i]);
      sum[0] += value * value;
    }
    return ((sum[0] + sum[1]) + (sum[2] + sum[3])) + ((sum[4] + sum[5]) + (sum[6] + sum[7]));
  }

  std::size_t num_moments_;
  std::vector<Tensor> tensors_;
  std::vector<Chunk> chunks_;
  std::vector<double> partial_;
};

}  // namespace moe::inline MOE_INSTRUCTION_SET
