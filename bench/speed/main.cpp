// SPDX-License-Identifier: Apache-2.0
// moe_speed: GFLOP/s, GB/s and the share of the machine's roof for layers of many shapes, packed
// forward and training, with the roofs probed beside every repetition.
#include <iostream>
#include <regex>
#include <span>

#include "../run_options.hpp"
#include "rows.hpp"

namespace moe::bench {
namespace {

template <class Subject>
void measure_all(Subject& subject, std::span<const Case> cases, int repetitions, Probes& probes,
                 std::vector<Row>& rows) {
  for (const Case& c : cases) {
    rows.push_back(measure(subject, c, repetitions, probes));
    print(rows.back());
  }
}

/// All cases of one layer, which is made here and goes afterwards: there is memory for one.
void measure_layer(std::span<const Case> cases, int threads, int repetitions, Probes& probes,
                   std::vector<Row>& rows) {
  const Case& c = cases.front();
  const auto forward = [&]<Storage S>(S) {
    // From bfloat16, so that a float layer of that size need not fit beside the packed one.
    Forward<S> subject(c, layer_of<bf16>(c), threads);
    measure_all(subject, cases, repetitions, probes, rows);
  };
  const auto train = [&]<Real T>(T) {
    Train<T> subject(c, layer_of<T>(c), threads);
    measure_all(subject, cases, repetitions, probes, rows);
  };
  if (c.pass == Pass::forward) {
    return with_storage(c.type, forward);
  }
  return c.type == Type::f64    ? train(double())
         : c.type == Type::bf16 ? train(bf16())
                                : train(float());
}

std::vector<Row> measure_selection(const RunOptions& options) {
  std::vector<Case> cases = speed_cases();
  const std::regex filter(options.filter);
  std::erase_if(cases, [&](const Case& c) { return !std::regex_search(c.name(), filter); });

  const int threads = detail::num_threads(options.threads);
  Probes probes(threads, smoke());
  std::vector<Row> rows;
  print_head();
  for (auto first = cases.begin(); first != cases.end();) {
    const auto last =
        std::find_if(first, cases.end(), [&](const Case& c) { return !c.same_layer(*first); });
    if (fits(*first)) {
      measure_layer({first, last}, threads, options.repetitions, probes, rows);
    } else {
      print_left_out(*first);
    }
    first = last;
  }
  print_roofs(probes);
  return rows;
}

}  // namespace
}  // namespace moe::bench

int main(int argc, char** argv) {
  moe::bench::RunOptions options;
  CLI::App app("Speed of Mixture-of-Experts layers, as a share of what this machine allows.");
  options.add_to(app, "type/pass/shape/tokens/routing");
  CLI11_PARSE(app, argc, argv);
  try {
    options.write(moe::bench::measure_selection(options));
  } catch (const std::exception& error) {
    std::cerr << error.what() << '\n';
    return 1;
  }
}
