// SPDX-License-Identifier: Apache-2.0
// golden_check FILE...: compares a layer with recorded ones, in double and in float. One line per
// file with its worst relative errors and ok or FAIL; exit status 1 unless every file is ok.
#include "golden_case.hpp"

#include <cstdio>
#include <exception>
#include <string_view>

namespace {

using namespace moe::golden;

void print_errors(const char* scalar, const std::vector<Error>& errors) {
  std::printf("  %s: y %.1e router %.1e losses %.1e gradients %.1e", scalar,
              worst(errors, Kind::output), worst(errors, Kind::router), worst(errors, Kind::loss),
              worst(errors, Kind::gradient));
}

void print_failures(const char* scalar, const std::vector<Error>& errors) {
  for (const Error& e : errors) {
    if (!e.ok()) {
      std::printf("    %s %s: error %.3e, expected at most %.0e\n", scalar, e.tensor.c_str(),
                  e.error, e.bound);
    }
  }
}

bool check(const char* path) {
  try {
    const moe::io::SafeTensors file = moe::io::SafeTensors::load(path);
    const auto in_double = check_file<double>(file);
    const auto in_float = check_file<float>(file);
    const bool ok = all_ok(in_double) && all_ok(in_float);
    std::printf("%s", path);
    print_errors("double", in_double);
    print_errors("float", in_float);
    std::printf("  %s\n", ok ? "ok" : "FAIL");
    print_failures("double", in_double);
    print_failures("float", in_float);
    return ok;
  } catch (const std::exception& e) {
    const std::string_view what = e.what();  // most of them name the file
    std::printf("%s%s%s  FAIL\n", what.starts_with(path) ? "" : path,
                what.starts_with(path) ? "" : ": ", e.what());
    return false;
  }
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 2) {
    std::fprintf(stderr, "usage: golden_check FILE...\n");
    return 1;
  }
  bool ok = true;
  for (int i = 1; i < argc; ++i) {
    ok = check(argv[i]) && ok;
  }
  return ok ? 0 : 1;
}
