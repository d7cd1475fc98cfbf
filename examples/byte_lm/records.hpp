// SPDX-License-Identifier: Apache-2.0
// What a run has measured so far, as lines of JSON: a checkpoint keeps them as text.
#pragma once

#include <iostream>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

namespace byte_lm {

using Json = nlohmann::ordered_json;

struct Records {
  using result_type = Json;  // moe::io::TrainingState keeps what is written and read as generators
  std::vector<Json> all;

  friend std::ostream& operator<<(std::ostream& out, const Records& records) {
    for (const Json& record : records.all) {
      out << record.dump() << '\n';
    }
    return out;
  }
  friend std::istream& operator>>(std::istream& in, Records& records) {
    records.all.clear();
    std::string line;
    while (std::getline(in, line)) {
      records.all.push_back(Json::parse(line, nullptr, /*allow_exceptions=*/false));
    }
    in.clear();  // its end is not a failure
    return in;
  }
};

}  // namespace byte_lm
