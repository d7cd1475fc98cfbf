// One program of units compiled for different instruction sets: each computes with its own code,
// and all agree with the specification and, on the gradient, with each other.
#include <cstdio>
#include <moe/moe.hpp>
#include <moe/reference.hpp>
#include <set>
#include <string>

#include "instruction_sets_unit.hpp"

namespace {

using Matrix = moe::Matrix<double>;

Matrix matrix(const std::vector<double>& values) {
  return Eigen::Map<const Matrix>(values.data(), unit_tokens, unit_config().d_model);
}

bool is_near(const std::vector<double>& got, const Matrix& want, double tolerance) {
  return (matrix(got) - want).norm() <= tolerance * want.norm();
}

}  // namespace

int main() {
  const moe::MoELayer<float> layer(unit_config(), 1);
  const std::vector<float> x = unit_input();
  const moe::Matrix<float> tokens =
      Eigen::Map<const moe::Matrix<float>>(x.data(), unit_tokens, unit_config().d_model);
  const Matrix want = moe::reference::forward(layer, tokens);

  std::vector<Unit> units{unit_of_baseline()};
#ifdef MOE_UNIT_V3
  units.push_back(unit_of_v3());
#endif
#ifdef MOE_UNIT_V3_VNNI
  units.push_back(unit_of_v3_vnni());
#endif
#ifdef MOE_UNIT_V4
  units.push_back(unit_of_v4());
#endif
#ifdef MOE_UNIT_V4_BF16
  units.push_back(unit_of_v4_bf16());
#endif
  const Matrix dx = matrix(units.front().dx);
  std::set<std::string> names;
  for (const Unit& unit : units) {
    const bool right = is_near(unit.plain, want, 1e-5) && is_near(unit.packed, want, 1e-5) &&
                       is_near(unit.packed_bf16, want, 2e-2) && is_near(unit.dx, dx, 1e-5);
    std::printf("%s: %s\n", unit.instruction_set.c_str(), right ? "right" : "WRONG");
    if (!right || !names.insert(unit.instruction_set).second) {
      return 1;
    }
  }
}
