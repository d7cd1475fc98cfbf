// SPDX-License-Identifier: Apache-2.0
// Experts that nearly nobody chooses: seen over the steps of a run, and given a new start beside
// the busiest one. An option of the training loop: nothing here happens by itself.
//
//   if (starved.add(load)) {
//     for (const moe::Revival& revival : moe::revive(layer, starved, load, {.seed = step})) {
//       moe::forget_expert(adam, layer, revival.expert, "layers.0.");
//     }
//   }
#pragma once

#include <algorithm>
#include <cmath>
#include <string>
#include <string_view>
#include <vector>

#include "expert_load.hpp"
#include "prune.hpp"
#include "upcycle.hpp"

namespace moe::inline MOE_INSTRUCTION_SET {

namespace detail {

inline void check_expert(ExpertId expert, Index num_experts, const char* what) {
  throw_unless(expert >= 0 && expert < num_experts, what, ": expert ", expert, ", expected in [0, ",
               num_experts, ")");
}

}  // namespace detail

struct StarvationConfig {
  double least_share = 0.05;  ///< of the mean load: a step with less is one of starvation
  Index patience = 100;       ///< so many of them in a row

  void validate() const {
    detail::throw_unless(least_share > 0.0 && least_share < 1.0,
                         "StarvationConfig: least_share = ", least_share, ", expected in (0, 1)");
    detail::throw_unless(patience >= 1, "StarvationConfig: patience = ", patience,
                         ", expected at least 1");
  }
};

/// For how many steps in a row each expert of a layer had too little.
class StarvedExperts {
 public:
  /// Throws std::invalid_argument for less than one expert, or if the config breaks its rules.
  explicit StarvedExperts(Index num_experts, const StarvationConfig& config = {})
      : config_(config) {
    detail::throw_unless(num_experts >= 1, "StarvedExperts: num_experts = ", num_experts,
                         ", expected at least 1");
    config_.validate();
    steps_.assign(static_cast<std::size_t>(num_experts), 0);
  }

  /// Takes in the load of one step, of all its micro-batches and ranks, and says whether an expert
  /// is starved now. A step without choices is none. Throws std::invalid_argument if the load is of
  /// another number of experts.
  bool add(const ExpertLoad& load) {
    detail::throw_unless(load.choices().size() == steps_.size(), "StarvedExperts: a load of ",
                         load.choices().size(), " experts, expected ", steps_.size());
    const double least = config_.least_share * load.mean();
    for (std::size_t e = 0; load.total() > 0 && e < steps_.size(); ++e) {
      steps_[e] = static_cast<double>(load.choices()[e]) < least ? steps_[e] + 1 : 0;
    }
    return !list().empty();
  }
  /// Steps in a row up to now, of each expert: for a checkpoint of the run, too.
  const std::vector<Index>& steps() const { return steps_; }
  /// Throws std::invalid_argument unless it is one number an expert, from which can be counted.
  void set_steps(const std::vector<Index>& steps) {
    detail::throw_unless(steps.size() == steps_.size(), "StarvedExperts: steps of ", steps.size(),
                         " experts, expected ", steps_.size());
    for (const Index count : steps) {
      detail::check_count(count, "StarvedExperts: steps");
    }
    steps_ = steps;
  }
  /// Experts that had too little for as long as the config says.
  std::vector<ExpertId> list() const {
    std::vector<ExpertId> starved;
    for (std::size_t e = 0; e < steps_.size(); ++e) {
      if (steps_[e] >= config_.patience) {
        starved.push_back(static_cast<ExpertId>(e));
      }
    }
    return starved;
  }
  /// The expert begins anew. Throws std::invalid_argument if there is none of this number.
  void clear(ExpertId expert) {
    detail::check_expert(expert, std::ssize(steps_), "StarvedExperts");
    steps_[static_cast<std::size_t>(expert)] = 0;
  }

 private:
  StarvationConfig config_;
  std::vector<Index> steps_;
};

struct Revival {
  ExpertId expert, copied;  ///< who was starved, and whose copy it is now
};

struct RevivalConfig {
  /// Of what is added to each weight of the copy and to its row of the router, as a share of the
  /// root mean square of the tensor: with none the two would stay the same.
  double noise = 0.01;
  std::uint64_t seed = 0;
};

namespace detail {

/// What copy_expert() throws.
template <Real T>
void check_copy(const MoELayer<T>& layer, const Revival& revival, const RevivalConfig& config) {
  layer.check_params({});
  check_selects_by_scores(layer.router(), "copy_expert");
  const ExpertId to = revival.expert, from = revival.copied;
  for (const ExpertId e : {to, from}) {
    check_expert(e, layer.num_experts(), "copy_expert");
  }
  throw_unless(to != from, "copy_expert: expert ", to, " from itself, expected another");
  throw_unless(std::isfinite(config.noise) && config.noise >= 0.0,
               "RevivalConfig: noise = ", config.noise, ", expected finite and at least 0");
  const Expert<T>& copy = layer.experts()[static_cast<std::size_t>(to)];
  const Expert<T>& source = layer.experts()[static_cast<std::size_t>(from)];
  throw_unless(copy.config() == source.config(), "copy_expert: expert ", to,
               " is of another kind than expert ", from);
  ExpertParams<T>::for_each(
      [](std::string_view name, const Matrix<T>& tensor, const Matrix<T>& other) {
        throw_unless(tensor.rows() == other.rows() && tensor.cols() == other.cols(),
                     "copy_expert: ", name, " is (", other.rows(), ", ", other.cols(),
                     "), expected (", tensor.rows(), ", ", tensor.cols(), ")");
      },
      copy.params(), source.params());
}

}  // namespace detail

/// Makes an expert a noisy copy of another, with what the router has for it, its selection bias
/// included: tokens of the other then choose both, or either. Throws std::invalid_argument unless
/// they are two experts of the layer, of one kind, and the router selects as keep_experts() takes
/// it.
template <Real T>
void copy_expert(MoELayer<T>& layer, const Revival& revival, const RevivalConfig& config) {
  detail::check_copy(layer, revival, config);
  const Index num_experts = layer.num_experts();
  const ExpertId to = revival.expert, from = revival.copied;
  const auto at = [&](ExpertId e) { return static_cast<std::size_t>(e); };
  const ExpertParams<T>& source = layer.experts()[at(from)].params();
  const std::uint64_t seed = detail::seed_of(config.seed, static_cast<std::uint64_t>(to));
  std::uint64_t stream = 0;
  ExpertParams<T>::for_each(
      [&](std::string_view, Matrix<T>& tensor, const Matrix<T>& other) {
        tensor = other;
        detail::add_noise(tensor, config.noise, seed, stream++);
      },
      layer.experts()[at(to)].params(), source);
  RouterParams<Wide<T>>::for_each(
      [&](std::string_view, Matrix<Wide<T>>& tensor) {
        ++stream;
        if (!detail::is_of_experts(tensor, num_experts)) {
          return;
        }
        if (tensor.rows() == 1) {
          tensor(0, to) = tensor(0, from);
          return;
        }
        Matrix<Wide<T>> row = tensor.row(from);
        detail::add_noise(row, config.noise, seed, stream);
        tensor.row(to) = row;
      },
      layer.router().params());
}

/// Makes each starved expert a copy of one of the busiest, of another each while there are such
/// that are not starved themselves, and clears its count. `load` is that of a step or of several.
/// Throws as copy_expert(), or if the sizes differ, before any is copied; nothing happens if no
/// expert is starved, or all are.
template <Real T>
std::vector<Revival> revive(MoELayer<T>& layer, StarvedExperts& starved, const ExpertLoad& load,
                            const RevivalConfig& config = {}) {
  const Index num_experts = layer.num_experts();
  detail::throw_unless(
      std::ssize(starved.steps()) == num_experts && std::ssize(load.choices()) == num_experts,
      "revive: steps of ", starved.steps().size(), " and a load of ", load.choices().size(),
      " experts, expected ", num_experts);
  const std::vector<ExpertId> list = starved.list();
  std::vector<ExpertId> busiest;
  for (ExpertId e = 0; e < num_experts; ++e) {
    if (std::find(list.begin(), list.end(), e) == list.end()) {
      busiest.push_back(e);
    }
  }
  std::stable_sort(busiest.begin(), busiest.end(), [&](ExpertId a, ExpertId b) {
    return load.choices()[static_cast<std::size_t>(a)] >
           load.choices()[static_cast<std::size_t>(b)];
  });
  std::vector<Revival> revivals;
  for (std::size_t i = 0; !busiest.empty() && i < list.size(); ++i) {
    revivals.push_back({list[i], busiest[i % busiest.size()]});
    detail::check_copy(layer, revivals.back(), config);
  }
  for (const Revival& revival : revivals) {
    copy_expert(layer, revival, config);
    starved.clear(revival.expert);
  }
  return revivals;
}

/// What an optimiser knows of an expert and of its row of the router becomes zero, and main weights
/// of the expert become its parameters of now. `prefix` is that of the layer in the walk. Throws
/// std::invalid_argument if the layer has no such expert, or the optimiser nothing of it: before
/// its first step there is nothing to forget.
template <class Optimiser, Real T>
void forget_expert(Optimiser& optimiser, const MoELayer<T>& layer, ExpertId expert,
                   std::string_view prefix = {}) {
  const Index num_experts = layer.num_experts();
  detail::check_expert(expert, num_experts, "forget_expert");
  const std::string of_expert = detail::joined(prefix, "experts.", expert, ".");
  const std::string of_router = detail::joined(prefix, "router.");
  bool found = false;
  optimiser.for_each_state(
      [&](const std::string& name, auto&) { found = found || name.starts_with(of_expert); });
  detail::throw_unless(found, "forget_expert: the optimiser has no tensor ", of_expert,
                       "*, expected those of a step");
  optimiser.for_each_state([&](const std::string& name, auto& state) {
    if (name.find(".moment.") == std::string::npos) {
      return;
    }
    if (name.starts_with(of_expert)) {
      state.setZero();
    } else if (name.starts_with(of_router) && detail::is_of_experts(state, num_experts)) {
      if (state.rows() == 1) {
        state(0, expert) = 0;
      } else {
        state.row(expert).setZero();
      }
    }
  });
  walk_params(layer, ParameterName{}, [&](const ParameterName& name, const auto& parameter) {
    const std::string main = detail::joined(prefix, name.text(), ".main");
    if (parameter.size() == 0 || !main.starts_with(of_expert)) {
      return;
    }
    optimiser.for_each_state([&](const std::string& of_state, auto& state) {
      using W = typename std::remove_cvref_t<decltype(state)>::Scalar;
      for (Index i = 0; of_state == main && i < state.size(); ++i) {
        state.data()[i] = kernels::convert<W>(parameter.data()[i]);
      }
    });
  });
}

}  // namespace moe::inline MOE_INSTRUCTION_SET
