// SPDX-License-Identifier: Apache-2.0
// What a ProductKeyLayer is made of, what a call of it produces, and what its backward needs of
// that. It is the caller's; the layer itself is const in use.
#pragma once

#include <optional>

#include "../experts/dense_ffn.hpp"
#include "../experts/rank_one.hpp"
#include "../routing/product_keys.hpp"

namespace moe::inline MOE_INSTRUCTION_SET {

struct ProductKeyLayerConfig {
  Index d_model = 0;
  ProductKeyConfig keys = {};
  /// Output width; d_model if not set.
  std::optional<Index> d_out = std::nullopt;
  /// Of the shared expert, and the activation of all.
  ExpertConfig expert = {};
  /// Hidden width of the shared expert; not set: there is none.
  std::optional<Index> shared_d_ff = std::nullopt;

  Index output_width() const { return d_out.value_or(d_model); }
  /// Throws std::invalid_argument naming the first value that breaks a rule.
  void validate() const {
    const auto positive = [](Index value, const char* name) {
      detail::throw_unless(value > 0, "ProductKeyLayerConfig: ", name, " = ", value,
                           ", expected above 0");
    };
    positive(d_model, "d_model");
    positive(output_width(), "d_out");
    positive(shared_d_ff.value_or(1), "shared_d_ff");
    keys.validate();
    expert.validate();
  }
};

/// Memory and results of an inference. Reused: it only grows. Not for two threads at once.
template <Real T>
struct ProductKeyScratch {
  typename ProductKeyRouter<T>::Table routing;
  typename RankOneExperts<T>::Scratch experts;
  GrowingMatrix<T> shared_out;  ///< (N, D_out)
  typename DenseFfn<T>::Scratch shared;
};

/// What backward needs of a forward, and its own memory.
template <Real T>
struct ProductKeyTape {
  typename ProductKeyRouter<T>::Table routing;
  typename RankOneExperts<T>::Tape experts;
  GrowingMatrix<T> shared_out;  ///< (N, D_out)
  typename DenseFfn<T>::Tape shared;
  KeptChoices kept;  ///< all
  DispatchPlan plan;
  RoutingGradient<Wide<T>> gradient;
  GrowingMatrix<T> shared_dx;  ///< (N, D)
  detail::Owner owner;         ///< the layer whose forward it is of
};

template <Real T>
struct ProductKeyGrads {
  GradsOf<ProductKeyRouter<T>> router;
  GradsOf<RankOneExperts<T>> experts;
  GradsOf<DenseFfn<T>> shared;  ///< empty without a shared expert
};

}  // namespace moe::inline MOE_INSTRUCTION_SET
