// SPDX-License-Identifier: Apache-2.0
// byte_lm TEXT...: dense and Mixture-of-Experts language models of bytes, trained with this library
// alone on the same batches, at equal FLOPs per token and for equal time; README.md beside this
// file says how to get text and what came out. options.hpp has the runs, train.hpp one of them.
#include <csignal>
#include <cstdio>
#if __has_include(<unistd.h>)
#include <unistd.h>
#endif

#include "options.hpp"
#include "report.hpp"
#include "sample.hpp"
#include "train.hpp"

using moe::Index;
using namespace byte_lm;

volatile std::sig_atomic_t interrupted = 0;

/// Whether progress goes to a terminal, where a line can be written over.
bool is_terminal() {
#if __has_include(<unistd.h>)
  return isatty(2) != 0;
#else
  return false;
#endif
}

void show(const std::string& name, const Progress& p, bool terminal) {
  const double rate = static_cast<double>(p.tokens) / std::max(p.seconds, 1e-9);
  std::fprintf(stderr, "%s%-12s %5.1f %%  %.3f bits  validation %.3f  %6.0f k tokens/s",
               terminal ? "\r" : "", name.c_str(),
               100.0 * static_cast<double>(p.tokens) / static_cast<double>(p.all), p.loss_bits,
               p.validation_bits, 1e-3 * rate);
  if (p.balance > 0.0) {
    std::fprintf(stderr, "  balance %.2f", p.balance);
  }
  std::fprintf(stderr, "  %5.0f s left%s", static_cast<double>(p.all - p.tokens) / rate,
               terminal ? "  " : "\n");
}

fs::path checkpoint_of(const Job& job, const Options& options) {
  return fs::path(options.out) / "runs" / (job.name() + ".safetensors");
}

bool goes_on(const Job& job, const Options& options) {
  return options.resume && fs::exists(checkpoint_of(job, options));
}

void train(const Job& job, const Options& options, const Corpus& corpus, Report& report) {
  Run run(corpus, job.config, job.train, job.seed);
  const fs::path checkpoint = checkpoint_of(job, options);
  fs::create_directories(checkpoint.parent_path());
  if (goes_on(job, options)) {
    run.load(checkpoint);
    std::fprintf(stderr, "%s %s\n", job.name().c_str(), run.standing().c_str());
  } else {
    run.save(checkpoint);  // what cannot be written is known at once
  }
  const bool terminal = is_terminal();
  run.train({.stop = [] { return interrupted != 0; },
             .show =
                 [&](const Progress& now) {
                   if (terminal || now.evaluated) {
                     show(job.name(), now, terminal);
                   }
                 },
             .record =
                 [&](Json record) {
                   record["model"] = job.model;
                   record["seed"] = job.seed;
                   report.add(std::move(record));
                 },
             .save = [&] { run.save(checkpoint); }});
  std::fprintf(stderr, "%s", terminal ? "\n" : "");
  if (options.sample > 0) {
    const std::string text =
        sample(run.model(), options.prompt, options.sample, options.temperature, job.seed);
    std::printf("--- %s writes ---\n", job.name().c_str());
    std::fwrite(text.data(), 1, text.size(), stdout);  // a byte may be 0
    std::printf("\n");
  }
}

void print_runs(const Json& runs) {
  std::printf("%-12s %4s %10s %12s %9s %8s %10s %8s\n", "model", "seed", "parameters",
              "FLOPs/token", "tokens", "seconds", "validation", "test");
  for (const Json& run : runs) {
    std::printf("%-12s %4lld %10lld %12.0f %9lld %8.1f %10.4f %8.4f%s\n",
                run["model"].get<std::string>().c_str(), run["seed"].get<long long>(),
                run["parameters"].get<long long>(), run["forward_flops_per_token"].get<double>(),
                run["tokens"].get<long long>(), run["seconds"].get<double>(),
                run["validation_bits"].get<double>(), run["test_bits"].get<double>(),
                run["complete"].get<bool>() ? "" : "  (stopped)");
    if (run.contains("specialisation")) {
      for (const Json& block : run["specialisation"]) {
        std::printf("  experts and sources share %.3f bits, shuffled %.4f\n",
                    block["bits"].get<double>(), block["shuffled_bits"].get<double>());
      }
    }
  }
}

void print(const Json& results) {
  print_runs(results["runs"]);
  for (const Json& load : results["balance"]) {
    std::printf(
        "%s, seed %lld: the busiest expert had at most %.2f times the mean, %lld experts had less "
        "than 1 %% of it\n",
        load["model"].get<std::string>().c_str(), load["seed"].get<long long>(),
        load["largest_over_mean"].get<double>(), load["starved"].get<long long>());
  }
  for (const Json& margin : results["margins"]) {
    std::printf(
        "%s, seed %lld: the MoE is %.4f bits per byte below the dense model on the test "
        "(%lld parameters against %lld, %.1f s against %.1f)\n",
        margin["at_equal"].get<std::string>().c_str(), margin["seed"].get<long long>(),
        margin["bits"].get<double>(), margin["moe_parameters"].get<long long>(),
        margin["dense_parameters"].get<long long>(), margin["moe_seconds"].get<double>(),
        margin["dense_seconds"].get<double>());
  }
  if (const Json& seeds = results["seeds"]; !seeds["margin_over_spread"].is_null()) {
    std::printf(
        "validation, from %lld tokens on: the margin is at least %.1f times the spread of "
        "the seeds\n",
        seeds["from_tokens"].get<long long>(), seeds["margin_over_spread"].get<double>());
  }
  for (const Json& moe : results["pareto"]) {
    if (moe.contains("below_dense_bits")) {
      std::printf("%-12s %.4f bits below the curve of the dense models at as many FLOPs\n",
                  moe["model"].get<std::string>().c_str(), moe["below_dense_bits"].get<double>());
    }
  }
}

void run(const Options& options) {
  const std::vector<Job> jobs = jobs_of(options);
  const Corpus corpus(options.text, options.model.context);
  for (const Job& job : jobs) {  // what is refused leaves the results of before as they were
    if (goes_on(job, options)) {
      Run(corpus, job.config, job.train, job.seed).load(checkpoint_of(job, options));
    }
  }
  Report report(options.out);
  for (const Job& job : jobs) {
    if (interrupted == 0) {
      train(job, options, corpus, report);
    }
  }
  Json settings = settings_of(options.model, options.train);
  settings["bytes"] = corpus.num_bytes();
  settings["threads"] = options.train.threads;
  for (Index s = 0; s < corpus.num_sources(); ++s) {
    settings["sources"].push_back(corpus.name(s));
  }
  print(report.write(settings, options.pareto));
  std::printf("%s\n", (report.folder() / "index.html").string().c_str());
}

int main(int argc, char** argv) {
  Options options;
  CLI::App app(
      "Dense against Mixture-of-Experts on text. Ctrl-C saves the run and stops, and what there is "
      "is reported. Exit code 2: something cannot be read or written");
  add_options(app, options);
  CLI11_PARSE(app, argc, argv);
  std::signal(SIGINT, [](int) { interrupted = 1; });
  try {
    run(options);
    return 0;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 2;
  }
}
