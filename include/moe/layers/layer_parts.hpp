// SPDX-License-Identifier: Apache-2.0
// What a layer is made of: a router, a set of experts, perhaps a shared expert, projections around
// the set, coefficients of both outputs, and a norm of the output; their sizes, and the walk over
// their parameters.
#pragma once

#include <optional>
#include <utility>

#include "../experts/dense_ffn.hpp"
#include "../experts/each_expert.hpp"
#include "../experts/latent.hpp"
#include "../experts/offloaded_experts.hpp"
#include "../experts/packed_experts.hpp"
#include "../routing/router.hpp"
#include "coefficients.hpp"
#include "output_norm.hpp"

namespace moe::inline MOE_INSTRUCTION_SET {

/// The set of experts that E stands for in a layer: E itself if it is one, else that around a
/// vector of E.
template <Real T, class E>
struct SetOf {
  using type = E;
};
template <Real T, ExpertLike<T> E>
struct SetOf<T, E> {
  using type = EachExpert<T, E>;
};
template <Real T>
struct SetOf<T, Expert<T>> {
  using type = FfnExperts<T>;
};

/// Whom to ask whether E is an expert: E, but for sets an expert that is one.
template <class E, class T>
using ExpertIn = std::conditional_t<ExpertSet<E, T>, Expert<T>, E>;

/// Experts, or a set of them, that train in a layer.
template <class E, class T>
concept TrainableInLayer =
    TrainableExpert<ExpertIn<E, T>, T> && TrainableExpertSet<typename SetOf<T, E>::type, T>;

/// The shared expert beside a set.
template <Real T, class Set>
struct SharedOf {
  using type = DenseFfn<T>;
};
template <Storage S>
struct SharedOf<Wide<S>, PackedExperts<S>> {
  using type = PackedFfn<S>;
};
template <Storage S>
struct SharedOf<Wide<S>, OffloadedExperts<S>> : SharedOf<Wide<S>, PackedExperts<S>> {};

template <Real T, ExpertSet<T> Set>
class ZeroExperts;
template <Real T, ExpertSet<T> Set>
struct SharedOf<T, ZeroExperts<T, Set>> : SharedOf<T, Set> {};

template <Real T, ExpertSet<T> Set>
class AdjugateExperts;
template <Real T, ExpertSet<T> Set>
struct SharedOf<T, AdjugateExperts<T, Set>> : SharedOf<T, Set> {};

/// What a layer may have beside router, experts and shared expert: projections around the experts,
/// or coefficients of the routed and the shared output, not both; and a norm of the output.
template <Real T>
struct LayerExtras {
  std::optional<Latent<T>> latent = std::nullopt;
  std::optional<Coefficients<T>> coefficients = std::nullopt;
  std::optional<OutputNorm<T>> output_norm = std::nullopt;

  LayerExtras() = default;
  LayerExtras(std::nullopt_t) {}
  LayerExtras(Latent<T> projections) : latent(std::move(projections)) {}
  LayerExtras(Coefficients<T> of_outputs) : coefficients(std::move(of_outputs)) {}
  LayerExtras(std::optional<Latent<T>> projections,
              std::optional<Coefficients<T>> of_outputs = std::nullopt,
              std::optional<OutputNorm<T>> of_sum = std::nullopt)
      : latent(std::move(projections)),
        coefficients(std::move(of_outputs)),
        output_norm(std::move(of_sum)) {}

  /// The same for tokens in another scalar, each parameter rounded once.
  template <Real To>
  LayerExtras<To> cast() const {
    LayerExtras<To> made;
    if (latent) {
      made.latent.emplace(latent->template cast<To>());
    }
    if (coefficients) {
      made.coefficients.emplace(coefficients->template cast<To>());
    }
    if (output_norm) {
      made.output_norm.emplace(output_norm->template cast<To>());
    }
    return made;
  }
};

/// Those of a config, with random weights from the seed.
template <Real T>
LayerExtras<T> make_extras(const MoEConfig& config, std::uint64_t seed) {
  LayerExtras<T> extras(make_latent<T>(config, seed));
  if (config.shared && config.shared->coefficients) {
    extras.coefficients.emplace(config.d_model, detail::seed_of(seed, ~std::uint64_t{1}));
  }
  if (config.output_norm) {
    extras.output_norm.emplace(config.output_width(), *config.output_norm);
  }
  return extras;
}

/// Like the parameters of a layer, in float at least: their gradients, or an optimiser's moments.
template <class RouterT, class Set, class Shared, Real T>
struct LayerGrads {
  GradsOf<RouterT> router;
  GradsOf<Set> experts;
  GradsOf<Shared> shared;                 ///< empty without a shared expert
  GradsOf<Latent<T>> latent;              ///< likewise
  GradsOf<Coefficients<T>> coefficients;  ///< likewise
  GradsOf<OutputNorm<T>> output_norm;     ///< likewise
};

/// The parts of a MoELayer, as its template says.
template <Real T, RouterLike<T> RouterT, class E>
class LayerParts {
 public:
  using W = Wide<T>;
  using Set = typename SetOf<T, E>::type;
  using Shared = typename SharedOf<T, Set>::type;
  using Grads = LayerGrads<RouterT, Set, Shared, T>;

  /// Throws std::invalid_argument if their sizes disagree, or the options ask the set for what it
  /// has not.
  LayerParts(RouterT router, Set experts, const LayerOptions& options, std::optional<Shared> shared,
             LayerExtras<T> extras)
      : router_(std::move(router)),
        experts_(std::move(experts)),
        options_(options),
        shared_(std::move(shared)),
        latent_(std::move(extras.latent)),
        coefficients_(std::move(extras.coefficients)),
        output_norm_(std::move(extras.output_norm)) {
    options_.validate();
    detail::throw_unless(WeighsHidden<Set> || options_.weight_on != WeightOn::hidden,
                         "MoELayer: weight_on is hidden, expected input or output with experts "
                         "whose hidden rows the layer does not see");
    check_params({});
  }

  /// Throws std::invalid_argument unless the parts fit each other and their parameters have their
  /// shapes: what stands in a layer may have been replaced. `name` is the layer's.
  void check_params(const ParameterName& name) const {
    check_params_beside_experts(name);
    moe::check_params(experts_, {.word = "experts", .part = &name});
  }

  Index d_in() const { return latent_ ? latent_->d_in() : experts_.d_in(); }
  Index d_out() const { return latent_ ? latent_->d_out() : experts_.d_out(); }
  Index num_experts() const { return experts_.num_experts(); }
  const LayerOptions& options() const { return options_; }
  /// Those of a forward, if all rows go to the largest experts; infinite where a part states none.
  double multiply_adds(Index rows) const {
    Index choices = 1;
    if constexpr (requires { router_.top_k(); }) {
      choices = router_.top_k();
    }
    return detail::multiply_adds(router_, rows) + detail::multiply_adds(experts_, rows * choices) +
           (shared_ ? detail::multiply_adds(*shared_, rows) : 0.0) +
           (latent_ ? latent_->multiply_adds(rows) : 0.0) +
           (coefficients_ ? coefficients_->multiply_adds(rows) : 0.0);
  }
  RouterT& router() { return router_; }
  const RouterT& router() const { return router_; }
  Set& experts() { return experts_; }
  const Set& experts() const { return experts_; }
  std::optional<Shared>& shared() { return shared_; }
  const std::optional<Shared>& shared() const { return shared_; }
  std::optional<Latent<T>>& latent() { return latent_; }
  const std::optional<Latent<T>>& latent() const { return latent_; }
  std::optional<Coefficients<T>>& coefficients() { return coefficients_; }
  const std::optional<Coefficients<T>>& coefficients() const { return coefficients_; }
  std::optional<OutputNorm<T>>& output_norm() { return output_norm_; }
  const std::optional<OutputNorm<T>>& output_norm() const { return output_norm_; }
  /// Copies of the last three, for a layer around other experts.
  LayerExtras<T> extras() const { return {latent_, coefficients_, output_norm_}; }

  /// Gradients of zero, of our own experts in W. The same struct serves as an optimiser's moments.
  Grads zero_grads() const requires TrainableInLayer<E, T> && TrainableRouter<RouterT, T> {
    Grads grads{.router = zero_grads_of(router_),
                .experts = zero_grads_of(experts_),
                .shared = {},
                .latent = {},
                .coefficients = {},
                .output_norm = {}};
    if (shared_) {
      grads.shared = zero_grads_of(*shared_);
    }
    if (latent_) {
      grads.latent = zero_grads_of(*latent_);
    }
    if (coefficients_) {
      grads.coefficients = zero_grads_of(*coefficients_);
    }
    if (output_norm_) {
      grads.output_norm = zero_grads_of(*output_norm_);
    }
    return grads;
  }

  /// visit(name, parameter, grad...) for each tensor. A name is a ParameterName, and also taken as
  /// a string like "experts.3.up".
  template <class Visit, class... G>
  void for_each_parameter(Visit&& visit,
                          G&... grads) requires Parametrised<RouterT> && Parametrised<Set> {
    walk(*this, {}, detail::visit_existing(visit), grads...);
  }
  template <class Visit, class... G>
  void for_each_parameter(Visit&& visit,
                          G&... grads) const requires Parametrised<RouterT> && Parametrised<Set> {
    walk(*this, {}, detail::visit_existing(visit), grads...);
  }

  /// What WalksParams asks for: all tensors, also those that a part does not have.
  template <class Layer, class Visit, class... G>
  static void walk(Layer& layer, const ParameterName& name, Visit&& visit, G&... grads) {
    walk_params(layer.router(), {.word = "router", .part = &name}, visit, grads.router...);
    walk_params(layer.experts(), {.word = "experts", .part = &name}, visit, grads.experts...);
    if (layer.shared()) {
      walk_params(*layer.shared(), {.word = "shared", .part = &name}, visit, grads.shared...);
    }
    if (layer.latent()) {
      walk_params(*layer.latent(), {.word = "latent", .part = &name}, visit, grads.latent...);
    }
    if (layer.coefficients()) {
      walk_params(*layer.coefficients(), {.word = "coefficients", .part = &name}, visit,
                  grads.coefficients...);
    }
    if (layer.output_norm()) {
      walk_params(*layer.output_norm(), {.word = "output_norm", .part = &name}, visit,
                  grads.output_norm...);
    }
  }

 protected:
  /// Of the rows that the router reads: of tokens, with a state behind them if it takes one.
  Index router_width() const {
    if constexpr (requires { router_.d_model(); }) {
      return router_.d_model();
    } else {
      return d_in();
    }
  }
  /// All of check_params but the experts' own: an inference asks only those that have rows.
  void check_params_beside_experts(const ParameterName& name) const {
    check_parts();
    moe::check_params(router_, {.word = "router", .part = &name});
    if (shared_) {
      moe::check_params(*shared_, {.word = "shared", .part = &name});
    }
    if (latent_) {
      latent_->check_params({.word = "latent", .part = &name});
    }
    if (coefficients_) {
      coefficients_->check_params({.word = "coefficients", .part = &name});
    }
    if (output_norm_) {
      output_norm_->check_params({.word = "output_norm", .part = &name});
    }
  }
  void check_parts() const {
    detail::throw_unless(router_.num_experts() == num_experts(), "MoELayer: the router has ",
                         router_.num_experts(), " experts, expected ", num_experts());
    if constexpr (requires { router_.gate().d_token(); }) {
      detail::throw_unless(router_.gate().d_token() == d_in(), "MoELayer: the router's tokens are ",
                           router_.gate().d_token(), " wide, expected ", d_in());
    } else {
      detail::throw_unless(router_width() == d_in(), "MoELayer: the router is ", router_width(),
                           " wide, expected ", d_in());
    }
    if (latent_) {
      detail::throw_unless(
          experts_.d_in() == latent_->width() && experts_.d_out() == latent_->width(),
          "MoELayer: the experts are ", experts_.d_in(), " to ", experts_.d_out(),
          " wide, expected the latent width ", latent_->width());
    }
    if (shared_) {
      detail::throw_unless(shared_->d_in() == d_in() && shared_->d_out() == d_out(),
                           "MoELayer: the shared expert is ", shared_->d_in(), " to ",
                           shared_->d_out(), " wide, expected ", d_in(), " to ", d_out());
    }
    if (coefficients_) {
      detail::throw_unless(shared_ && !latent_ && options_.unscaled(),
                           "MoELayer: there are coefficients, expected a shared expert with them, "
                           "and no latent part and scales");
      detail::throw_unless(coefficients_->d_in() == d_in(), "MoELayer: the coefficients are ",
                           coefficients_->d_in(), " wide, expected ", d_in());
    }
    if (output_norm_) {
      detail::throw_unless(output_norm_->d_out() == d_out(), "MoELayer: the norm of the output is ",
                           output_norm_->d_out(), " wide, expected ", d_out());
    }
  }

  RouterT router_;
  Set experts_;
  LayerOptions options_;
  std::optional<Shared> shared_;
  std::optional<Latent<T>> latent_;
  std::optional<Coefficients<T>> coefficients_;
  std::optional<OutputNorm<T>> output_norm_;
};

}  // namespace moe::inline MOE_INSTRUCTION_SET
