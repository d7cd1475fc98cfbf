// SPDX-License-Identifier: Apache-2.0
// The command line: what is asked for, and the runs that make it up.
#pragma once

#include <CLI/CLI.hpp>
#include <thread>

#include "train_options.hpp"

namespace byte_lm {

struct Options {
  std::vector<std::string> text, models = {"dense", "moe", "dense_long"};
  std::string out = "byte_lm_out", prompt;
  ModelConfig model = {.feed_forward = {.num_experts = 32}};
  Index dense_d_ff = 0, seeds = 1, sample = 0;
  double temperature = 0.8;
  bool resume = false, pareto = false;
  TrainOptions train = {
      .long_factor = 2.0,  // of dense_long alone
      .threads = static_cast<int>((std::max)(1U, std::thread::hardware_concurrency()))};
};

/// One run, under a name that no other run of the program has.
struct Job {
  std::string model;
  std::uint64_t seed = 1;
  ModelConfig config;
  TrainOptions train;

  std::string name() const { return model + '_' + std::to_string(seed); }
};

/// The dense one is as wide as it takes to compute as much for a token as the MoE, and dense_long
/// is the same, trained on more tokens: for at least as much time as the MoE.
inline Job comparison_job(const Options& options, const std::string& model, std::uint64_t seed) {
  Job job{model, seed, options.model, options.train};
  FeedForwardConfig& part = job.config.feed_forward;
  part.selection_bias = options.train.balance == Balance::bias;
  if (model != "moe") {
    part = dense_of_equal_flops(part);
    part.d_ff = options.dense_d_ff > 0 ? options.dense_d_ff : part.d_ff;
  }
  if (model != "dense_long") {
    job.train.long_factor = 1.0;
  }
  return job;
}

/// Dense ones from an expert's width to that of all experts of the largest MoE, and each MoE.
inline std::vector<Job> pareto_jobs(const Options& options, std::uint64_t seed) {
  const std::vector<Index> experts = {8, 16, 32, 64};
  const Index sizes = 5;
  std::vector<Job> jobs;
  const auto add = [&](const std::string& model, const FeedForwardConfig& part) {
    jobs.push_back({model, seed, options.model, options.train});
    jobs.back().config.feed_forward = part;
    jobs.back().train.long_factor = 1.0;
  };
  FeedForwardConfig part = options.model.feed_forward;
  for (Index i = 0; i < sizes; ++i) {
    const double share = static_cast<double>(i) / static_cast<double>(sizes - 1);
    const double factor = std::pow(static_cast<double>(experts.back()), share);
    const Index d_ff = std::lround(static_cast<double>(part.d_ff) * factor);
    add("dense_f" + std::to_string(d_ff), {.d_model = part.d_model, .d_ff = d_ff});
  }
  part.selection_bias = options.train.balance == Balance::bias;
  for (const Index num_experts : experts) {
    for (const Index top_k : {1, 2, 4}) {
      part.num_experts = num_experts;
      part.top_k = top_k;
      add("moe_e" + std::to_string(num_experts) + "_k" + std::to_string(top_k), part);
    }
  }
  return jobs;
}

inline std::vector<Job> jobs_of(const Options& options) {
  std::vector<Job> jobs;
  for (Index i = 1; i <= options.seeds; ++i) {
    const auto seed = static_cast<std::uint64_t>(i);
    if (options.pareto) {
      const std::vector<Job> more = pareto_jobs(options, seed);
      jobs.insert(jobs.end(), more.begin(), more.end());
      continue;
    }
    for (const std::string& model : options.models) {
      jobs.push_back(comparison_job(options, model, seed));
    }
  }
  return jobs;
}

inline void add_options(CLI::App& app, Options& options) {
  FeedForwardConfig& moe = options.model.feed_forward;
  TrainOptions& train = options.train;
  app.option_defaults()->always_capture_default();
  app.add_option("text", options.text, "Files of text, or folders of *.txt: a source each")
      ->required();
  app.add_option("--out", options.out, "Folder of the results and of the checkpoints");
  app.add_flag("--resume", options.resume,
               "Runs go on from their checkpoints; without it they start anew");
  app.add_option("--save-every", train.save_every, "Steps from a checkpoint to the next")
      ->check(CLI::PositiveNumber);
  app.add_option("--models", options.models, "Of dense, moe, dense_long: those to train")
      ->delimiter(',')
      ->check(CLI::IsMember({"dense", "moe", "dense_long"}));
  app.add_flag("--pareto", options.pareto,
               "Instead: dense models of five widths, and MoEs of 8 to 64 experts, 1 to 4 of them");
  app.add_option("--seeds", options.seeds, "Runs of each")->check(CLI::PositiveNumber);
  app.add_option("--tokens", train.tokens, "Bytes to train on")->check(CLI::PositiveNumber);
  app.add_option("--long-factor", train.long_factor, "Tokens of dense_long over the others'")
      ->check(CLI::Range(1.0, 100.0));
  app.add_option("--batch", train.batch, "Bytes of a step")->check(CLI::PositiveNumber);
  app.add_option("--context", options.model.context, "Bytes that the next is told from")
      ->check(CLI::Range(1, 1024));
  app.add_option("--embedding", options.model.embedding, "Width of a byte's vector")
      ->check(CLI::Range(1, 1024));
  app.add_option("--d-model", moe.d_model, "Width of the model")->check(CLI::PositiveNumber);
  app.add_option("--blocks", options.model.blocks, "Residual blocks")->check(CLI::Range(1, 48));
  app.add_option("--experts", moe.num_experts, "Experts of a block")->check(CLI::PositiveNumber);
  app.add_option("--top-k", moe.top_k, "Experts of a byte")->check(CLI::PositiveNumber);
  app.add_option("--d-ff", moe.d_ff, "Of an expert")->check(CLI::PositiveNumber);
  app.add_option("--dense-d-ff", options.dense_d_ff, "Not set: of at least the MoE's FLOPs");
  app.add_option("--rate", train.rate, "Of AdamW, after the warm-up")->check(CLI::PositiveNumber);
  app.add_option("--warm-up", train.warm_up,
                 "Steps at a rising rate; much of a run of a million bytes")
      ->check(CLI::NonNegativeNumber);
  app.add_option("--balance", train.balance, "Of the experts' load: aux, bias or none")
      ->transform(CLI::CheckedTransformer(balances));
  app.add_option("--balance-weight", train.losses.balance, "Of the load-balancing loss")
      ->check(CLI::NonNegativeNumber);
  app.add_option("--z-weight", train.losses.z, "Of the z-loss")->check(CLI::NonNegativeNumber);
  app.add_option("--bias-rate", train.bias.rate, "What a bias moves in a step, with --balance bias")
      ->check(CLI::NonNegativeNumber);
  app.add_option("--evaluations", train.evaluations, "In a run")->check(CLI::PositiveNumber);
  app.add_option("--validation-tokens", train.validation_tokens, "Bytes of an evaluation")
      ->check(CLI::PositiveNumber);
  app.add_option("--test-tokens", train.test_tokens, "Bytes of the test")
      ->check(CLI::PositiveNumber);
  app.add_option("--threads", train.threads, "Of a step")->check(CLI::PositiveNumber);
  app.add_option("--sample", options.sample, "Bytes that each model writes at its end");
  app.add_option("--prompt", options.prompt, "Of the sample");
  app.add_option("--temperature", options.temperature, "Of the sample")->check(CLI::PositiveNumber);
}

}  // namespace byte_lm
