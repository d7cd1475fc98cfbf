// SPDX-License-Identifier: Apache-2.0
// byte_lm TEXT...: a dense and a Mixture-of-Experts language model of bytes, trained with this
// library alone on the same batches, at equal FLOPs per token; README.md beside this file says how
// to get text and what came out. model.hpp is the model, train.hpp a run.
#include <CLI/CLI.hpp>
#include <csignal>
#include <cstdio>
#include <moe/io/safetensors.hpp>
#include <thread>
#if __has_include(<unistd.h>)
#include <unistd.h>
#endif

#include "report.hpp"
#include "sample.hpp"
#include "train.hpp"

using moe::Index;
using namespace byte_lm;

const std::map<std::string, Balance> balances{
    {"aux", Balance::aux}, {"bias", Balance::bias}, {"none", Balance::none}};

struct Options {
  std::vector<std::string> text, models = {"dense", "moe"};
  std::string out = "byte_lm_out", prompt;
  ModelConfig model = {.feed_forward = {.num_experts = 32}};
  Index dense_d_ff = 0, seeds = 1, sample = 0;
  double temperature = 0.8;
  TrainOptions train;
};

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
  std::fprintf(stderr, "%s%-10s %5.1f %%  %.3f bits  validation %.3f  %6.0f k tokens/s",
               terminal ? "\r" : "", name.c_str(),
               100.0 * static_cast<double>(p.tokens) / static_cast<double>(p.all), p.loss_bits,
               p.validation_bits, 1e-3 * rate);
  if (p.balance > 0.0) {
    std::fprintf(stderr, "  balance %.2f", p.balance);
  }
  std::fprintf(stderr, "  %5.0f s left%s", static_cast<double>(p.all - p.tokens) / rate,
               terminal ? "  " : "\n");
}

/// The dense one is as wide as it takes to compute as much as the MoE.
ModelConfig config_of(const std::string& model, const Options& options) {
  ModelConfig config = options.model;
  config.feed_forward.selection_bias = options.train.balance == Balance::bias;
  if (model == "dense") {
    config.feed_forward = dense_of_equal_flops(config.feed_forward);
    config.feed_forward.d_ff =
        options.dense_d_ff > 0 ? options.dense_d_ff : config.feed_forward.d_ff;
  }
  return config;
}

std::string name_of(Balance balance) {
  return std::find_if(balances.begin(), balances.end(),
                      [&](const auto& pair) { return pair.second == balance; })
      ->first;
}

Json settings_of(const Options& options, const Corpus& corpus) {
  Json all{{"bytes", corpus.num_bytes()},
           {"context", options.model.context},
           {"d_model", options.model.feed_forward.d_model},
           {"blocks", options.model.blocks},
           {"experts", options.model.feed_forward.num_experts},
           {"top_k", options.model.feed_forward.top_k},
           {"expert_d_ff", options.model.feed_forward.d_ff},
           {"dense_d_ff", config_of("dense", options).feed_forward.d_ff},
           {"tokens", options.train.tokens},
           {"batch", options.train.batch},
           {"rate", options.train.rate},
           {"balance", name_of(options.train.balance)},
           {"threads", options.train.threads}};
  for (Index s = 0; s < corpus.num_sources(); ++s) {
    all["sources"].push_back(corpus.name(s));
  }
  return all;
}

void train_one(const std::string& name, std::uint64_t seed, const Options& options,
               const Corpus& corpus, Report& report) {
  Run run(corpus, config_of(name, options), options.train, seed);
  const std::string title = name + " #" + std::to_string(seed);
  const bool terminal = is_terminal();
  run.train([] { return interrupted != 0; },
            [&](const Progress& now) {
              if (terminal || now.evaluated) {
                show(title, now, terminal);
              }
            },
            [&](Json record) {
              record["model"] = name;
              record["seed"] = seed;
              report.add(std::move(record));
            });
  std::fprintf(stderr, "%s", terminal ? "\n" : "");
  if (options.sample > 0) {
    std::printf(
        "--- %s writes ---\n%s\n", title.c_str(),
        sample(run.model(), options.prompt, options.sample, options.temperature, seed).c_str());
  }
}

void print(const Json& results) {
  std::printf("%-8s %4s %10s %12s %8s %10s %8s\n", "model", "seed", "parameters", "FLOPs/token",
              "seconds", "validation", "test");
  for (const Json& run : results["runs"]) {
    std::printf("%-8s %4lld %10lld %12.0f %8.1f %10.4f %8.4f%s\n",
                run["model"].get<std::string>().c_str(), run["seed"].get<long long>(),
                run["parameters"].get<long long>(), run["forward_flops_per_token"].get<double>(),
                run["seconds"].get<double>(), run["validation_bits"].get<double>(),
                run["test_bits"].get<double>(), run["complete"].get<bool>() ? "" : "  (stopped)");
    if (run.contains("specialisation")) {
      for (const Json& block : run["specialisation"]) {
        std::printf("  experts and sources share %.3f bits, shuffled %.4f\n",
                    block["bits"].get<double>(), block["shuffled_bits"].get<double>());
      }
    }
  }
  for (const Json& margin : results["margins"]) {
    std::printf("seed %lld: the MoE is %.4f bits per byte below the dense model on the test\n",
                margin["seed"].get<long long>(), margin["bits"].get<double>());
  }
}

void run(const Options& options) {
  const Corpus corpus(options.text, options.model.context);
  Report report(options.out);
  for (Index seed = 1; seed <= options.seeds; ++seed) {
    for (const std::string& name : options.models) {
      if (interrupted == 0) {
        train_one(name, static_cast<std::uint64_t>(seed), options, corpus, report);
      }
    }
  }
  print(report.write(settings_of(options, corpus)));
  std::printf("%s\n", (fs::path(options.out) / "index.html").string().c_str());
}

void add_options(CLI::App& app, Options& options) {
  FeedForwardConfig& moe = options.model.feed_forward;
  TrainOptions& train = options.train;
  app.add_option("text", options.text, "Files of text, or folders of *.txt: a source each")
      ->required();
  app.add_option("--out", options.out, "Folder of the results");
  app.add_option("--models", options.models, "dense, moe or both")
      ->delimiter(',')
      ->check(CLI::IsMember({"dense", "moe"}));
  app.add_option("--seeds", options.seeds, "Runs of each")->check(CLI::PositiveNumber);
  app.add_option("--tokens", train.tokens, "Bytes to train on")->check(CLI::PositiveNumber);
  app.add_option("--batch", train.batch)->check(CLI::PositiveNumber);
  app.add_option("--context", options.model.context)->check(CLI::Range(1, 1024));
  app.add_option("--embedding", options.model.embedding, "Width of a byte's vector")
      ->check(CLI::Range(1, 1024));
  app.add_option("--d-model", moe.d_model)->check(CLI::PositiveNumber);
  app.add_option("--blocks", options.model.blocks)->check(CLI::Range(1, 48));
  app.add_option("--experts", moe.num_experts)->check(CLI::PositiveNumber);
  app.add_option("--top-k", moe.top_k)->check(CLI::PositiveNumber);
  app.add_option("--d-ff", moe.d_ff, "Of an expert")->check(CLI::PositiveNumber);
  app.add_option("--dense-d-ff", options.dense_d_ff, "Not set: of at least the MoE's FLOPs");
  app.add_option("--rate", train.rate)->check(CLI::PositiveNumber);
  app.add_option("--warm-up", train.warm_up, "Steps")->check(CLI::NonNegativeNumber);
  app.add_option("--balance", train.balance, "Of the experts' load: aux, bias or none")
      ->transform(CLI::CheckedTransformer(balances));
  app.add_option("--balance-weight", train.losses.balance)->check(CLI::NonNegativeNumber);
  app.add_option("--z-weight", train.losses.z)->check(CLI::NonNegativeNumber);
  app.add_option("--bias-rate", train.bias_rate)->check(CLI::NonNegativeNumber);
  app.add_option("--evaluations", train.evaluations)->check(CLI::PositiveNumber);
  app.add_option("--validation-tokens", train.validation_tokens)->check(CLI::PositiveNumber);
  app.add_option("--test-tokens", train.test_tokens)->check(CLI::PositiveNumber);
  app.add_option("--threads", train.threads)->check(CLI::PositiveNumber);
  app.add_option("--sample", options.sample, "Bytes that each model writes at its end");
  app.add_option("--prompt", options.prompt, "Of the sample");
  app.add_option("--temperature", options.temperature)->check(CLI::PositiveNumber);
}

int main(int argc, char** argv) {
  Options options;
  options.train.threads = static_cast<int>(std::max(1U, std::thread::hardware_concurrency()));
  CLI::App app(
      "Dense against Mixture-of-Experts on text. Ctrl-C ends the run, and what there is is "
      "reported. Exit code 2: something cannot be read or written");
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
