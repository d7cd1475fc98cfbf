// SPDX-License-Identifier: Apache-2.0
// moe_train_step: one full training step (forward, losses, backward, clipping, AdamW) as a share of
// what the machine allows, and against the same step in LibTorch where that is installed, which
// first has to give the same losses over 20 steps.
#include <iostream>
#include <regex>

#include "../run_options.hpp"
#include "rows.hpp"

namespace moe::bench {
namespace {

std::vector<TaskShape> timed_tasks() {
  if (smoke()) {
    return {{"mixtral", mixtral_style(32, 64, 4), 40}, {"switch", switch_style(32, 64, 4), 40}};
  }
  return {{"mixtral", mixtral_style(1024, 3584, 8), 512},
          {"mixtral", mixtral_style(1024, 3584, 8), 4096}};
}

std::string name(const TaskShape& shape) {
  return shape.style + '/' + shape_name(shape.config) + '/' + std::to_string(shape.tokens);
}

void check(int threads) {
  for (const TaskShape& shape : checked_tasks()) {
    check_curve(shape, threads);
  }
}

void measure(const RunOptions& options, int threads) {
  const std::regex filter(options.filter);
  Probes probes(threads, smoke());
  std::vector<Row> rows;
  print_head();
  for (const TaskShape& shape : timed_tasks()) {
    if (std::regex_search(name(shape), filter)) {
      rows.push_back(StepMeasurement(shape, threads, probes).measure(options.repetitions));
      print(rows.back());
    }
  }
  options.write(rows);
}

}  // namespace
}  // namespace moe::bench

int main(int argc, char** argv) {
  using namespace moe::bench;
  RunOptions options;
  bool only_check = false;
  CLI::App app("A training step with AdamW: its speed, and LibTorch's time over ours.");
  options.add_to(app, "style/shape/tokens");
  app.add_flag("--check", only_check, "Only compare the losses of 20 steps with LibTorch's");
  CLI11_PARSE(app, argc, argv);
  try {
    const int threads = moe::detail::num_threads(options.threads);
#ifdef _OPENMP
    omp_set_num_threads(threads);  // of LibTorch
#endif
    const bool has_peer = make_peer_step<double> != nullptr;
    if (only_check && !has_peer) {
      throw std::runtime_error("moe_train_step: built without LibTorch, nothing to compare with");
    }
    if (has_peer) {
      check(threads);
    }
    if (!only_check) {
      measure(options, threads);
    }
  } catch (const std::exception& error) {
    std::cerr << error.what() << '\n';
    return 1;
  }
}
