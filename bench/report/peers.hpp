// SPDX-License-Identifier: Apache-2.0
// Other libraries' times for the same layer: what moe_peers wrote, where it was run.
#pragma once

#include <filesystem>
#include <fstream>

#include "results.hpp"

namespace moe::report {

/// Null if there is no such file. Throws nlohmann::json::exception if it is not JSON.
inline Json read_peers(const std::filesystem::path& path) {
  std::ifstream file(path);
  return file ? Json::parse(file) : Json();
}

}  // namespace moe::report
