// SPDX-License-Identifier: Apache-2.0
// A stopwatch and the median, for every program that times something.
#pragma once

#include <algorithm>
#include <chrono>
#include <functional>
#include <vector>

namespace moe::bench {

class Stopwatch {
 public:
  double seconds() const {
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count();
  }

 private:
  std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
};

template <class F>
double seconds_of(F&& f) {
  const Stopwatch watch;
  f();
  return watch.seconds();
}

/// The middle value, of an even number the upper one.
inline double median(std::vector<double> values) {
  const auto middle = values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2);
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

/// The median of figure(item), or of a member of the items.
template <class Items, class Figure>
double median_of(const Items& items, Figure&& figure) {
  std::vector<double> values;
  for (const auto& item : items) {
    values.push_back(std::invoke(figure, item));
  }
  return median(std::move(values));
}

}  // namespace moe::bench
