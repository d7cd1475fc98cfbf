// SPDX-License-Identifier: Apache-2.0
// Rotary position embedding (Su et al. 2021) of a model: element i of a head and element
// i + head_dim / 2 are turned by an angle that grows with the position, the slower the greater i.
// YaRN (Peng et al. 2023) slows those that turn less than once in the context of the training.
#pragma once

#include <algorithm>
#include <cmath>
#include <numbers>
#include <optional>
#include <vector>

#include "linear.hpp"

namespace decoder {

struct Yarn {
  double factor = 1.0;         // how much longer the context is than in training
  double context = 0.0;        // positions in training
  double fast = 32, slow = 1;  // turns in it: as many are left as they are; so few are slowed
  bool whole = true;           // the limits between fast and slow are whole numbers of elements
  double scale = 1.0;          // of queries and keys
};

struct RotaryConfig {
  Index head_dim = 0;
  double theta = 0.0;
  std::optional<Yarn> yarn = std::nullopt;
};

/// Of the tokens of a batch, for all layers: (N, head_dim / 2).
struct Rotation {
  Rows cos, sin;

  /// In place, all heads of every row.
  void turn(Rows& x) const {
    const Index half = cos.cols();
    for (Index row = 0; row < x.rows(); ++row) {
      for (Index begin = 0; begin < x.cols(); begin += 2 * half) {
        for (Index i = 0; i < half; ++i) {
          float& first = x(row, begin + i);
          float& second = x(row, begin + half + i);
          const float a = first, b = second;
          first = a * cos(row, i) - b * sin(row, i);
          second = b * cos(row, i) + a * sin(row, i);
        }
      }
    }
  }
};

class Rotary {
 public:
  explicit Rotary(const RotaryConfig& config) : scale_(config.yarn ? config.yarn->scale : 1.0) {
    const auto width = static_cast<double>(config.head_dim);
    for (Index i = 0; i < config.head_dim / 2; ++i) {
      frequency_.push_back(std::pow(config.theta, -2.0 * static_cast<double>(i) / width));
    }
    if (config.yarn) {
      slow_down(*config.yarn, config);
    }
  }

  Rotation at(const std::vector<Index>& positions) const {
    const auto rows = static_cast<Index>(positions.size());
    const auto half = static_cast<Index>(frequency_.size());
    Rotation made{Rows(rows, half), Rows(rows, half)};
    for (Index row = 0; row < rows; ++row) {
      const auto position = static_cast<double>(positions[static_cast<std::size_t>(row)]);
      for (Index i = 0; i < half; ++i) {
        const double angle = position * frequency_[static_cast<std::size_t>(i)];
        made.cos(row, i) = static_cast<float>(scale_ * std::cos(angle));
        made.sin(row, i) = static_cast<float>(scale_ * std::sin(angle));
      }
    }
    return made;
  }

 private:
  void slow_down(const Yarn& yarn, const RotaryConfig& config) {
    // The element, as a real number, that turns so often in the context.
    const auto width = static_cast<double>(config.head_dim);
    const auto element_of = [&](double turns) {
      return width * std::log(yarn.context / (turns * 2.0 * std::numbers::pi)) /
             (2.0 * std::log(config.theta));
    };
    double begin = element_of(yarn.fast), end = element_of(yarn.slow);
    if (yarn.whole) {
      begin = std::floor(begin);
      end = std::ceil(end);
    }
    begin = (std::max)(begin, 0.0);
    end = (std::min)(end, width - 1.0);
    const double length = end > begin || end < begin ? end - begin : 0.001;
    for (std::size_t i = 0; i < frequency_.size(); ++i) {
      const double slowed = std::clamp((static_cast<double>(i) - begin) / length, 0.0, 1.0);
      frequency_[i] *= 1.0 - slowed + slowed / yarn.factor;
    }
  }

  std::vector<double> frequency_;  // radians a position
  double scale_;
};

}  // namespace decoder
