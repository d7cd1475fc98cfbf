// SPDX-License-Identifier: Apache-2.0
// moe_report: compares dense and MoE layers on this machine. Counts published models, measures,
// counts FLOPs, and writes report.json, CSV files, pictures and index.html.
#include <CLI/CLI.hpp>
#include <iostream>

#include "counted.hpp"
#include "load.hpp"
#include "machine.hpp"
#include "measure.hpp"
#include "page.hpp"
#include "peers.hpp"
#include "summary.hpp"
#include "yardstick.hpp"

namespace moe::report {
namespace {

struct Options {
  std::filesystem::path out = "report";
  bool quick = false;
  int threads = 0;
};

Report make_report(const Options& options) {
  const Stopwatch watch;
  const auto progress = [&](const std::string& step) {
    std::cout << pad(fixed(watch.seconds(), 0), 5) << " s  " << step << std::endl;
  };
  Report report;
  report.grid = options.quick ? quick_grid() : full_grid();
  report.machine = this_machine(detail::num_threads(options.threads));
  progress("published models and counted FLOPs");
  report.models = model_rows();
  report.counted = count_all();
  for (const auto& [name, skew] : {std::pair{"Even routing", 0.0F}, {"Skewed routing", 0.6F}}) {
    report.loads.push_back(measure_load(report.grid, name, skew, report.machine.threads));
  }

  Probes probes(report.machine.threads, options.quick);
  progress("reference layer in every form");
  report.yardstick = YardstickMeasurement(report.grid, report.machine.threads, probes).run();
  report.measured = Measurement(report.grid, report.machine.threads, probes).run(progress);
  report.peers = read_peers(options.out / "peers.json");
  report.machine.fma_roof = probes.best<float>().compute;
  report.machine.read_roof = probes.best<float>().read;
  report.seconds = watch.seconds();
  return report;
}

/// Throws std::runtime_error if gnuplot is there and fails; by then all but the pictures is
/// written.
void write_report(const Report& report, const std::filesystem::path& out) {
  std::filesystem::create_directories(out);
  Json json = to_json(report);
  write_tables(json, out);
  json["summary"] = summary(report);
  write_text(out / "summary.txt", json["summary"]);
  json["pictures"] = false;
  write_page(json, out);
  if (have_gnuplot()) {
    draw_pictures(out);
    json["pictures"] = true;
    write_page(json, out);
  } else {
    std::cout << "gnuplot is not installed: no pictures, tables only\n";
  }
}

}  // namespace
}  // namespace moe::report

int main(int argc, char** argv) {
  moe::report::Options options;
  CLI::App app("Compares dense and Mixture-of-Experts layers on this machine.");
  app.add_option("--out", options.out, "Folder for the report")->capture_default_str();
  app.add_flag("--quick", options.quick, "Small shapes, to see that everything runs");
  app.add_option("--threads", options.threads, "Threads; 0 for OpenMP's default")
      ->check(CLI::NonNegativeNumber);
  CLI11_PARSE(app, argc, argv);
  try {
    const moe::report::Report report = moe::report::make_report(options);
    std::cout << moe::report::summary(report);
    moe::report::write_report(report, options.out);
    std::cout << "Written to " << options.out.string() << "/index.html in "
              << moe::report::fixed(report.seconds, 0) << " s\n";
  } catch (const std::exception& error) {
    std::cerr << error.what() << '\n';
    return 1;
  }
}
