// SPDX-License-Identifier: Apache-2.0
// How far y of a packed layer may be from that of its layer, by what pack_errors() reports and by
// how the storage keeps rows. Every step takes a vector that is known within a distance, and says
// within what distance its result is.
#pragma once

#include <map>
#include <stdexcept>

#include "moe/layers/pack_error.hpp"
#include "moe/reference.hpp"

namespace moe::testing {

using reference::Row;

/// A vector, and how far from it another may be: Euclidean norms.
struct Near {
  Row value;
  double off = 0.0;

  double norm() const {
    double squares = 0.0;
    for (const double v : value) {
      squares += v * v;
    }
    return std::sqrt(squares);
  }
  double largest() const {
    double most = 0.0;
    for (const double v : value) {
      most = std::max(most, std::abs(v));
    }
    return most;
  }
};

inline double norm(const Matrix<float>& m) { return m.cast<double>().norm(); }

/// A row rounded as the storage S keeps it: to 1/254 of the largest of a block at most, or to the
/// precision of the numbers.
template <Storage S>
Near stored(Near row) {
  using Packed = PackedMatrix<S>;
  if constexpr (kernels::numbers_in < typename Packed::Input >> 1) {
    double squares = 0.0;
    for (std::size_t k = 0; k < row.value.size(); k += kernels::block_size) {
      const std::size_t end = std::min<std::size_t>(k + kernels::block_size, row.value.size());
      double most = 0.0;
      for (std::size_t i = k; i < end; ++i) {
        most = std::max(most, std::abs(row.value[i]));
      }
      squares += static_cast<double>(end - k) * most * most;
    }
    row.off += (std::sqrt(squares) + std::sqrt(32.0) * row.off) / 254 * (1 + 1e-5) + 1e-43;
  } else {
    const bool narrow = sizeof(typename Packed::Input) < sizeof(Wide<S>) ||
                        sizeof(typename Packed::Precision) < sizeof(Wide<S>);
    row.off += (narrow ? 0x1p-9 : 0x1p-24) * (row.norm() + row.off);
  }
  return row;
}

/// The bounds of a layer whose weights are off as reported.
template <Storage S, class RouterT>
class PackBound {
 public:
  using Layer = MoELayer<float, RouterT>;

  PackBound(const Layer& layer, const std::vector<PackError>& errors) : layer_(layer) {
    for (const PackError& error : errors) {
      errors_[error.tensor] = error;
    }
  }

  /// |y of the packed layer - y| of a token, by its choices as either routes them. A choice that
  /// was dropped makes the bound no smaller.
  template <class Table>
  double operator()(const Matrix<float>& x, const Table& table, Index token) const {
    const LayerOptions& options = layer_.options();
    const bool on_input = options.weight_on == WeightOn::input;
    const Row x_row = reference::row_of(x, token);
    Near sum{Row(static_cast<std::size_t>(layer_.experts().d_out()), 0.0)};
    for (Index k = 0; k < table.top_k(); ++k) {
      const ExpertId e = table.expert(token, k);
      if (e == none) {
        continue;
      }
      const double weight = static_cast<double>(table.weight(token, k));
      Near input{layer_.latent() ? reference::enter_latent(*layer_.latent(), x_row) : x_row};
      input.off = layer_.latent() ? rounding(layer_.latent()->params().down, Near{x_row}) : 0.0;
      scale(input, on_input ? weight : 1.0);
      Near output = expert(layer_.experts()[static_cast<std::size_t>(e)],
                           "experts." + std::to_string(e), input);
      scale(output, on_input ? 1.0 : weight);
      add(output, sum);
    }
    if (layer_.latent()) {
      leave_latent(sum);
    }
    const auto c = layer_.coefficients() ? reference::coefficients(*layer_.coefficients(), x_row)
                                         : Row{1.0, 1.0};
    scale(sum, c[0] * options.routed_scale);
    if (layer_.shared()) {
      Near output = expert(layer_.shared()->expert(), "shared", {x_row});
      scale(output, c[1] * options.shared_scale);
      add(output, sum);
    }
    return sum.off + 1e-40;
  }

 private:
  /// Of what the numbers of float lose in sums and products of so many terms.
  static double rounding(const Matrix<float>& w, const Near& x) {
    return static_cast<double>(w.cols() + 8) * 0x1p-24 * norm(w) * (x.norm() + x.off);
  }
  static void scale(Near& row, double factor) {
    for (double& value : row.value) {
      value *= factor;
    }
    row.off = std::abs(factor) * (row.off + 0x1p-22 * row.norm());
  }
  static void add(const Near& row, Near& sum) {
    for (std::size_t i = 0; i < sum.value.size(); ++i) {
      sum.value[i] += row.value[i];
    }
    sum.off += row.off + 0x1p-22 * (row.norm() + sum.norm());
  }
  void leave_latent(Near& sum) const {
    const auto& latent = *layer_.latent();
    const auto& p = latent.params();
    double off = sum.off;
    if (latent.config().norm) {
      const double n = static_cast<double>(sum.value.size());
      const double root = std::sqrt(sum.norm() * sum.norm() / n + latent.config().eps);
      off *= 2 * p.norm.template cast<double>().cwiseAbs().maxCoeff() / root;
    }
    sum.value = reference::leave_latent(latent, sum.value);
    sum.off = norm(p.up) * off + 0x1p-20 * sum.norm();
  }

  /// w x + b with w off by what is reported.
  Near product(const Matrix<float>& w, const Matrix<float>& bias, const std::string& name,
               const Near& x) const {
    const auto found = errors_.find(name);
    if (found == errors_.end()) {
      throw std::out_of_range("PackBound: " + name + " is not reported");
    }
    const double root = std::sqrt(static_cast<double>(found->second.size));
    const double w_off = root * found->second.rms, w_norm = root * found->second.weight_rms;
    Near y{reference::linear(w, bias, x.value)};
    y.off = w_norm * x.off + w_off * (x.norm() + x.off) + rounding(w, x) + 0x1p-22 * y.norm();
    return y;
  }

  Near expert(const Expert<float>& e, const std::string& name, const Near& input) const {
    const auto& p = e.params();
    const Near x = stored<S>(input);
    const Near up = product(p.up, p.up_bias, name + ".up", x);
    const Near hidden = e.config().gated
                            ? pair(e.config(), product(p.gate, p.gate_bias, name + ".gate", x), up)
                            : activated(e.config(), up);
    Near y = product(p.down, p.down_bias, name + ".down", stored<S>(hidden));
    if (e.config().output_gate) {
      const Row z = reference::linear(p.output_gate, Matrix<float>(), x.value);
      const double factor = reference::sigmoid(z[0]);
      const double factor_off = 0.25 * norm(p.output_gate) * x.off + 1e-5;
      const double off = (factor + factor_off) * y.off + factor_off * y.norm();
      scale(y, factor);
      y.off = off;
    }
    return y;
  }

  /// The largest slope of an activation is 1.13, that of GELU; a square's grows with the number.
  static double slope(const ExpertConfig& config, const Near& z) {
    return config.activation == Activation::relu_squared ? 2 * (z.largest() + z.off) : 1.13;
  }
  static Near activated(const ExpertConfig& config, const Near& z) {
    Near h = z;
    for (double& value : h.value) {
      value = reference::activate(config, value);
    }
    h.off = slope(config, z) * z.off + 1e-6 * h.norm();
    return h;
  }
  /// Limits and bounds bring two numbers no further apart.
  static Near pair(const ExpertConfig& config, const Near& gate, const Near& up) {
    Near h = up;
    double most = 0.0;
    for (std::size_t i = 0; i < h.value.size(); ++i) {
      h.value[i] = reference::gated_pair(config, gate.value[i], up.value[i]);
      most = std::max(most, std::abs(reference::activate(config, gate.value[i])));
    }
    const double up_most = up.largest() + up.off + std::abs(config.up_offset);
    h.off = slope(config, gate) * gate.off * up_most + most * up.off + 1e-6 * h.norm();
    return h;
  }

  const Layer& layer_;
  std::map<std::string, PackError> errors_;
};

}  // namespace moe::testing
