// SPDX-License-Identifier: Apache-2.0
// One row through an expert and the small one that its group shares, in double.
#pragma once

#include "../experts/adjugate.hpp"
#include "expert.hpp"

namespace moe::inline MOE_INSTRUCTION_SET::reference {

template <Real T>
Row adjugate_expert(const AdjugateExperts<T>& experts, std::size_t number, const Row& x) {
  const std::size_t each = experts.set().size() / experts.adjugates().size();
  const Expert<T>&own = experts.set()[number], &adjugate = experts.adjugates()[number / each];
  Row y = expert(own.params(), own.config(), x);
  const Row added = expert(adjugate.params(), adjugate.config(), x);
  for (std::size_t i = 0; i < y.size(); ++i) {
    y[i] += experts.scale() * added[i];
  }
  return y;
}

}  // namespace moe::inline MOE_INSTRUCTION_SET::reference
