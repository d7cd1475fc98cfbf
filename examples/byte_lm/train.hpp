// SPDX-License-Identifier: Apache-2.0
// One training run of one model: AdamW with warm-up and cosine, the losses and the bias that keep
// the experts' load even, and evaluations on the way. What it measures goes out as JSON, one record
// an evaluation and one at the end.
#pragma once

#include <chrono>
#include <functional>
#include <moe/io/training_state.hpp>
#include <span>

#include "data.hpp"
#include "records.hpp"
#include "specialisation.hpp"
#include "train_options.hpp"

namespace byte_lm {

/// What a line of progress shows.
struct Progress {
  Index tokens = 0, all = 0;
  double loss_bits = 0.0, validation_bits = 0.0, seconds = 0.0;
  double balance = 0.0;    ///< the worst block's busiest expert over the mean; 0: dense
  bool evaluated = false;  ///< validation_bits is new
};

/// Who goes along with a run.
struct Companion {
  std::function<bool()> stop = [] { return false; };  ///< asked between two steps
  std::function<void(const Progress&)> show = [](const Progress&) {};
  std::function<void(const Json&)> record = [](const Json&) {};
  std::function<void()> save = [] {};  ///< every so many steps, and behind the last one
};

class Run {
 public:
  Run(const Corpus& corpus, const ModelConfig& config, const TrainOptions& options,
      std::uint64_t seed)
      : corpus_(corpus),
        options_(options),
        seed_(seed),
        settings_(settings_by_option(config, options)),
        flops_(config),
        model_(config, seed),
        adamw_(options.adamw, group_of),
        num_steps_(options.num_steps()) {
    settings_["seed"] = seed;
    settings_["text"] = corpus.description();
    model_.set_threads(options.threads);
    for (Index b = 0; b < num_routers(config); ++b) {
      load_.emplace_back(config.feed_forward.num_experts);
      step_load_.emplace_back(config.feed_forward.num_experts);
    }
  }

  Model<float>& model() { return model_; }
  const ModelFlops& flops() const { return flops_; }

  Index steps() const { return adamw_.steps(); }
  /// Of a run that was loaded, as a message says it.
  std::string standing() const {
    return steps() == num_steps_ ? "is complete"
                                 : "goes on from step " + std::to_string(steps()) + " of " +
                                       std::to_string(num_steps_);
  }

  /// Trains to the end, or until it is told to stop. A run that goes on first gives the records
  /// that it has; what it measures when it is stopped is no part of it.
  void train(const Companion& with) {
    for (const Json& record : records_.all) {
      with.record(record);
    }
    for (Index step = steps() + 1; step <= num_steps_ && !with.stop(); ++step) {
      const auto start = std::chrono::steady_clock::now();
      const double bits = do_step(step) / std::log(2.0);
      seconds_ += std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
      smooth_bits_ = step == 1 ? bits : 0.95 * smooth_bits_ + 0.05 * bits;
      const auto evaluations_by = [&](Index n) {
        return n * options_.num_evaluations() / num_steps_;
      };
      const bool evaluated = evaluations_by(step) > evaluations_by(step - 1);
      if (evaluated) {
        validation_bits_ = evaluate(Split::validation, options_.validation_tokens);
        add(evaluation(), with);
      }
      with.show(progress(evaluated));
      for (moe::ExpertLoad& load : load_) {
        evaluated ? load.clear() : void();
      }
      if (step % options_.save_every == 0 && step < num_steps_) {
        with.save();
      }
    }
    if (steps() < num_steps_) {
      with.save();
      with.record(end());
    } else if (records_.all.back()["event"] != "end") {
      add(end(), with);
      with.save();
    }
  }

  /// The whole run as a checkpoint; io/training_state.hpp says what is thrown, and what stays.
  void save(const std::filesystem::path& path) {
    Rows<Index> counts = load_counts();
    moe::io::save_training_state(path, [&](auto& state) { describe(state, counts); });
  }
  /// Goes on from a checkpoint of the same text, settings and seed; others are refused with the
  /// option that differs.
  void load(const std::filesystem::path& path) {
    Rows<Index> counts = load_counts();
    moe::io::load_training_state(path, [&](auto& state) { describe(state, counts); });
    for (std::size_t b = 0; b < load_.size(); ++b) {
      load_[b].clear();
      load_[b].add(std::span<const Index>(&counts(static_cast<Index>(b), 0),
                                          static_cast<std::size_t>(counts.cols())));
    }
  }

 private:
  static Json settings_by_option(const ModelConfig& config, const TrainOptions& options) {
    const Json settings = settings_of(config, options);
    Json named;
    for (const auto& [name, value] : settings.items()) {
      named[options_of(name, config.feed_forward.dense())] = value;
    }
    return named;
  }
  static Index num_routers(const ModelConfig& config) {
    return config.feed_forward.dense() ? 0 : config.blocks;
  }
  /// Scales of norms do not decay, and the selection bias follows the load alone.
  static moe::ParameterGroup group_of(const std::string& name) {
    if (name.ends_with("selection_bias")) {
      return {.rate = 0.0, .decay = 0.0};
    }
    return {.decay = name.ends_with("norm") ? 0.0 : 1.0};
  }

  Index tokens() const { return adamw_.steps() * options_.batch; }

  /// Batches come from the seed and the number of the step alone: there is no generator to keep.
  void describe(moe::io::TrainingState& state, Rows<Index>& counts) {
    for (const auto& [name, value] : settings_.items()) {
      state.expect(name, value.dump());
    }
    state.add("adamw", adamw_, [&](auto&& visit) { model_.walk(visit); });
    state.add("seconds", seconds_);
    state.add("smooth_bits", smooth_bits_);
    state.add("validation_bits", validation_bits_);
    state.add("load", counts);
    state.add("records", records_);
  }
  /// (routers, E)
  Rows<Index> load_counts() const {
    Rows<Index> counts(std::ssize(load_), load_.empty() ? 0 : std::ssize(load_[0].choices()));
    for (std::size_t b = 0; b < load_.size(); ++b) {
      std::copy(load_[b].choices().begin(), load_[b].choices().end(),
                &counts(static_cast<Index>(b), 0));
    }
    return counts;
  }

  void add(Json record, const Companion& with) {
    records_.all.push_back(std::move(record));
    with.record(records_.all.back());
  }

  /// The loss of the text in nats.
  double do_step(Index step) {
    corpus_.draw(seed_, step, options_.batch, batch_);
    const double loss = model_.forward(batch_);
    RouterLosses losses = options_.losses;
    losses.balance = options_.balance == Balance::aux ? losses.balance : 0.0;
    model_.backward(batch_, losses);
    const double factor =
        moe::cosine_factor(step, {.warm_up = (std::min)(options_.warm_up, num_steps_),
                                  .total = num_steps_,
                                  .floor = options_.floor});
    const moe::StepResult result = adamw_.step(
        [&](auto&& visit) { model_.walk(visit); },
        {.rate = options_.rate * factor, .clip = options_.clip, .num_threads = options_.threads});
    if (!result.applied) {
      throw std::runtime_error("the gradient is not finite any more, expected a smaller rate");
    }
    for (std::size_t b = 0; b < load_.size(); ++b) {
      FeedForward<float>& part = model_.feed_forward(static_cast<Index>(b));
      load_[b].add(part.routing());
      if (options_.balance == Balance::bias) {
        step_load_[b].clear();
        step_load_[b].add(part.routing());
        moe::update_selection_bias(part.moe()->router().params().selection_bias, step_load_[b],
                                   options_.bias);
      }
    }
    return loss;
  }

  /// Bits per byte. see(sources of a batch), if given, is called behind each forward.
  double evaluate(Split split, Index all,
                  const std::function<void(const std::vector<Index>&)>& see = {}) {
    double sum = 0.0;
    all = (std::min)(all, corpus_.size(split));
    for (Index first = 0; first < all; first += options_.batch) {
      corpus_.spread(split, all, first, options_.batch, eval_batch_, eval_source_);
      sum += model_.forward(eval_batch_) * static_cast<double>(eval_source_.size());
      if (see) {
        see(eval_source_);
      }
    }
    return sum / static_cast<double>(all) / std::log(2.0);
  }

  Progress progress(bool evaluated) const {
    Progress now{
        tokens(), num_steps_ * options_.batch, smooth_bits_, validation_bits_, seconds_, 0.0,
        evaluated};
    for (const moe::ExpertLoad& load : load_) {
      now.balance = (std::max)(now.balance, load.largest_over_mean());
    }
    return now;
  }

  /// Experts with less than a hundredth of the mean.
  static Index num_starved(const moe::ExpertLoad& load) {
    return std::count_if(load.choices().begin(), load.choices().end(), [&](Index count) {
      return static_cast<double>(count) < 0.01 * load.mean();
    });
  }

  Json end() {
    Json all{{"event", "end"},
             {"complete", steps() == num_steps_},
             {"tokens", tokens()},
             {"seconds", seconds_},
             {"parameters", model_.num_parameters()},
             {"forward_flops_per_token", flops_.forward},
             {"training_flops_per_token", flops_.training},
             {"validation_bits", evaluate(Split::validation, options_.validation_tokens)},
             {"test_bits", evaluate(Split::test, options_.test_tokens)}};
    if (!load_.empty()) {
      all["specialisation"] = specialisation();
    }
    return all;
  }

  Json evaluation() const {
    Json all{{"event", "evaluation"},
             {"tokens", tokens()},
             {"seconds", seconds_},
             {"training_flops", flops_.training * static_cast<double>(tokens())},
             {"training_bits", smooth_bits_},
             {"validation_bits", validation_bits_}};
    for (const moe::ExpertLoad& load : load_) {
      all["load"].push_back({{"largest_over_mean", load.largest_over_mean()},
                             {"idle", load.num_idle()},
                             {"starved", num_starved(load)},
                             {"choices", load.choices()}});
    }
    return all;
  }

  /// Of each router, on validation text.
  Json specialisation() {
    std::vector<Specialisation> blocks;
    for (std::size_t b = 0; b < load_.size(); ++b) {
      blocks.emplace_back(static_cast<Index>(load_[b].choices().size()), corpus_.num_sources());
    }
    evaluate(Split::validation, 4 * options_.validation_tokens,
             [&](const std::vector<Index>& sources) {
               for (std::size_t b = 0; b < blocks.size(); ++b) {
                 blocks[b].add(model_.feed_forward(static_cast<Index>(b)).routing(), sources);
               }
             });
    Json all = Json::array();
    for (const Specialisation& block : blocks) {
      const Rows<double> counts = block.counts();
      Json rows = Json::array();
      for (Index e = 0; e < counts.rows(); ++e) {
        rows.push_back(std::vector<double>(&counts(e, 0), &counts(e, 0) + counts.cols()));
      }
      all.push_back(
          {{"bits", block.bits()}, {"shuffled_bits", block.shuffled_bits()}, {"counts", rows}});
    }
    return all;
  }

  const Corpus& corpus_;
  TrainOptions options_;
  std::uint64_t seed_;
  Json settings_;
  ModelFlops flops_;
  Model<float> model_;
  moe::AdamW<float> adamw_;
  Index num_steps_;
  std::vector<moe::ExpertLoad> load_, step_load_;  // of each router, since the last evaluation
  double seconds_ = 0.0, smooth_bits_ = 0.0, validation_bits_ = 0.0;
  Records records_;
  Batch batch_, eval_batch_;
  std::vector<Index> eval_source_;
};

}  // namespace byte_lm
