// SPDX-License-Identifier: Apache-2.0
// The code of check_file() for golden_test.cpp and golden_check.cpp.
#include "golden_case.hpp"

namespace moe::golden {

template std::vector<Error> check_file<float>(const io::SafeTensors& file);
template std::vector<Error> check_file<double>(const io::SafeTensors& file);

}  // namespace moe::golden
