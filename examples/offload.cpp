// SPDX-License-Identifier: Apache-2.0
// offload: a layer larger than the memory it may have. Its experts are written to a file and read
// from there as tokens want them, under Zipf routing: few experts are wanted often, most seldom.
// Shows the hit rate beside a simulated LRU and the best that any cache of the size can do
// (Belady 1966), bytes read per second beside a probe of the disk, and tokens per second.
#include <moe/io/open_packed.hpp>
#include <moe/io/save_packed.hpp>
#include <moe/moe.hpp>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <future>
#include <list>
#include <random>
#include <stdexcept>

namespace fs = std::filesystem;
using moe::ExpertId;
using moe::Index;

struct Options {
  std::string storage = "q8", path;
  Index experts = 32, d_model = 256, d_ff = 256, top_k = 4, tokens = 1, calls = 300;
  double memory = 2.0;  // MiB
  double zipf = 1.0;
  int readers = 2;
  unsigned seed = 1;
};

using Calls = std::vector<moe::Matrix<ExpertId>>;       // (tokens, K) of each call
using References = std::vector<std::vector<ExpertId>>;  // experts of each call, each once

// The expert of rank r is drawn with a probability of r^-zipf; of a token none twice.
Calls draw_calls(const Options& options) {
  std::mt19937 random(options.seed);
  std::vector<double> weight(static_cast<std::size_t>(options.experts));
  for (std::size_t e = 0; e < weight.size(); ++e) {
    weight[e] = std::pow(static_cast<double>(e + 1), -options.zipf);
  }
  std::shuffle(weight.begin(), weight.end(), random);
  Calls calls(static_cast<std::size_t>(options.calls));
  for (moe::Matrix<ExpertId>& call : calls) {
    call.resize(options.tokens, options.top_k);
    for (Index token = 0; token < options.tokens; ++token) {
      std::vector<double> left = weight;
      for (Index k = 0; k < options.top_k; ++k) {
        std::discrete_distribution<ExpertId> draw(left.begin(), left.end());
        call(token, k) = draw(random);
        left[static_cast<std::size_t>(call(token, k))] = 0.0;
      }
    }
  }
  return calls;
}

// One token for each K experts, so that all of them are wanted.
moe::Matrix<ExpertId> call_of_all(const Options& options) {
  moe::Matrix<ExpertId> call((options.experts + options.top_k - 1) / options.top_k, options.top_k);
  for (Index choice = 0; choice < call.size(); ++choice) {
    call.data()[choice] = static_cast<ExpertId>(choice % options.experts);
  }
  return call;
}

References references_of(const Calls& calls) {
  References references;
  for (const moe::Matrix<ExpertId>& call : calls) {
    std::vector<ExpertId> experts(call.data(), call.data() + call.size());
    std::sort(experts.begin(), experts.end());
    experts.erase(std::unique(experts.begin(), experts.end()), experts.end());
    references.push_back(std::move(experts));
  }
  return references;
}

// Hits of a cache of so many experts, of which `worst` says who goes: of a call those come first
// that are there. held has the newest in front.
template <class Worst>
std::uint64_t simulated_hits(const References& references, std::size_t slots, Worst&& worst) {
  std::list<ExpertId> held;
  std::uint64_t hits = 0;
  for (std::size_t call = 0; call < references.size(); ++call) {
    std::vector<ExpertId> order = references[call];
    const auto is_held = [&](ExpertId e) {
      return std::find(held.begin(), held.end(), e) != held.end();
    };
    std::stable_partition(order.begin(), order.end(), is_held);
    for (const ExpertId expert : order) {
      if (is_held(expert)) {
        ++hits;
        held.remove(expert);
      } else if (held.size() == slots) {
        held.erase(worst(held, call));
      }
      held.push_front(expert);
    }
  }
  return hits;
}

std::uint64_t lru_hits(const References& references, std::size_t slots) {
  return simulated_hits(references, slots,
                        [](const auto& held, std::size_t) { return std::prev(held.end()); });
}

// Whose next use is furthest away.
std::uint64_t belady_hits(const References& references, std::size_t slots) {
  return simulated_hits(references, slots, [&](const auto& held, std::size_t call) {
    auto furthest = held.begin();
    std::size_t distance = 0;
    for (auto expert = held.begin(); expert != held.end(); ++expert) {
      std::size_t next = call + 1;
      while (next < references.size() &&
             !std::binary_search(references[next].begin(), references[next].end(), *expert)) {
        ++next;
      }
      if (next >= distance) {
        distance = next;
        furthest = expert;
      }
    }
    return furthest;
  });
}

template <class F>
double seconds_of(F&& f) {
  const auto before = std::chrono::steady_clock::now();
  f();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - before).count();
}

// The file from begin to end by so many threads, each a block at a time; bytes per second.
double probe_disk(const fs::path& path, std::size_t block, int threads) {
  const moe::io::detail::InputFile file(path);
  const bool direct = file.read_directly();
  const Index blocks = static_cast<Index>(file.size() / block);
  std::atomic<Index> next = 0;
  std::vector<moe::io::detail::Pages> memory(
      static_cast<std::size_t>(moe::io::detail::reads_apart ? threads : 1));
  for (moe::io::detail::Pages& pages : memory) {
    pages = moe::io::detail::make_pages(block);
  }
  const auto read = [&](std::byte* to) {
    for (Index i = next++; i < blocks; i = next++) {
      const auto offset = static_cast<std::uint64_t>(i) * block;
      file.read(offset, {to, block});
      if (!direct) {
        file.forget(offset, block);
      }
    }
  };
  const double seconds = seconds_of([&] {
    std::vector<std::future<void>> readers;
    for (std::size_t i = 1; i < memory.size(); ++i) {
      readers.push_back(std::async(std::launch::async, read, memory[i].get()));
    }
    read(memory.front().get());
    for (std::future<void>& reader : readers) {
      reader.get();
    }
  });
  return static_cast<double>(blocks) * static_cast<double>(block) / seconds;
}

template <moe::FileStorage S>
void write_file(const Options& options, const fs::path& path) {
  moe::io::save_packed<S>(path, options.experts, [&](Index e) {
    const moe::Expert<float>::Sizes sizes{options.d_model, options.d_ff, options.d_model};
    return moe::PackedExpert<S>(
        moe::Expert<float>(sizes, moe::ExpertConfig{}, static_cast<std::uint64_t>(e)));
  });
}

// CLI::Range takes NaN for a number of any range.
void check_options(const Options& options) {
  if (!(std::abs(options.zipf) <= 10.0)) {  // else experts may have no probability that is a number
    throw std::invalid_argument("--zipf " + std::to_string(options.zipf) + ", expected -10 to 10");
  }
}

// Experts that the memory holds.
Index slots_of(const Options& options, std::size_t extent) {
  const double mib = static_cast<double>(extent) / 1048576.0, slots = options.memory / mib;
  if (!(slots >= 1.0)) {
    throw std::invalid_argument("--memory " + std::to_string(options.memory) +
                                ", expected at least one expert's " + std::to_string(mib));
  }
  return static_cast<Index>(std::min(slots, static_cast<double>(options.experts)));
}

template <moe::FileStorage S>
int run(const Options& options, const fs::path& path) {
  const Index width = options.d_model;
  const std::size_t extent =
      moe::ExpertExtent<S>(moe::ExpertConfig{}, width, options.d_ff, width).bytes();
  const Index slots = slots_of(options, extent);
  write_file<S>(options, path);
  const double probe = probe_disk(path, extent, options.readers);
  moe::MoELayer<float, moe::Router<float>, moe::OffloadedExperts<S>> layer(
      moe::Router<float>(options.d_model, options.experts, options.top_k, moe::RouterConfig{},
                         options.seed),
      moe::io::open_cached<S>(path, {.slots = slots, .threads = options.readers}));
  const auto& experts = layer.experts();
  const double mib = static_cast<double>(extent) / 1048576.0;
  std::printf("%lld experts of %.2f MiB in %s, %.1f MiB; %lld slots, %.1f MiB of at most %.1f\n",
              static_cast<long long>(options.experts), mib, options.storage.c_str(),
              static_cast<double>(options.experts) * mib, static_cast<long long>(slots),
              static_cast<double>(experts.bytes()) / 1048576.0, options.memory);

  Calls calls = draw_calls(options);
  calls.insert(calls.begin(), call_of_all(options));
  typename std::remove_cvref_t<decltype(layer)>::Scratch scratch;
  bool finite = true;
  const auto forward = [&](const moe::Matrix<ExpertId>& call) {
    const moe::Matrix<float> x = moe::Matrix<float>::Random(call.rows(), options.d_model);
    moe::Matrix<float> y(call.rows(), options.d_model);
    layer.forward(x, y, scratch, {.experts = &call});
    finite = finite && y.allFinite();
  };
  const double cold_seconds = seconds_of([&] { forward(calls.front()); });
  const moe::StoreCounts cold = experts.counts();
  const double seconds =
      seconds_of([&] { std::for_each(calls.begin() + 1, calls.end(), forward); });
  const moe::StoreCounts counts = experts.counts();

  const References references = references_of(calls);
  const std::uint64_t lru = lru_hits(references, static_cast<std::size_t>(slots));
  const std::uint64_t best = belady_hits(references, static_cast<std::size_t>(slots));
  const auto percent = [&](std::uint64_t hits) {
    return 100.0 * static_cast<double>(hits) /
           static_cast<double>(counts.hits + counts.misses - cold.misses);
  };
  const double waited = counts.seconds_waited - cold.seconds_waited;
  std::printf("all experts  %6.2f GB/s read, probe of the disk %.2f with the same blocks\n",
              static_cast<double>(cold.bytes) / cold_seconds / 1e9, probe / 1e9);
  std::printf("hits         %6.2f %%, simulated LRU %.2f %%, best possible %.2f %%\n",
              percent(counts.hits), percent(lru), percent(best));
  std::printf("tokens/s     %6.1f, %.2f MiB read for each, %.0f %% of the time waited\n",
              static_cast<double>(options.calls * options.tokens) / seconds,
              static_cast<double>(counts.bytes - cold.bytes) / 1048576.0 /
                  static_cast<double>(options.calls * options.tokens),
              100.0 * waited / seconds);
  return counts.hits == lru && counts.hits <= best && finite ? 0 : 1;
}

int main(int argc, char** argv) {
  Options options;
  CLI::App app("A layer whose experts lie in a file");
  app.add_option("--storage", options.storage, "q8, q4, q4_k, mxfp4 or fp8")
      ->check(CLI::IsMember({"q8", "q4", "q4_k", "mxfp4", "fp8"}));
  app.add_option("--experts", options.experts, "Experts")->check(CLI::PositiveNumber);
  app.add_option("--d-model", options.d_model, "Width of a token")->check(CLI::PositiveNumber);
  app.add_option("--d-ff", options.d_ff, "Hidden width")->check(CLI::PositiveNumber);
  app.add_option("--top-k", options.top_k, "Experts of a token")->check(CLI::PositiveNumber);
  app.add_option("--tokens", options.tokens, "Tokens of a call")->check(CLI::PositiveNumber);
  app.add_option("--calls", options.calls, "Calls")->check(CLI::PositiveNumber);
  app.add_option("--memory", options.memory, "MiB that experts may take")
      ->check(CLI::PositiveNumber);
  app.add_option("--zipf", options.zipf, "Exponent of the routing; 0: every expert alike");
  app.add_option("--readers", options.readers, "Threads that read")->check(CLI::PositiveNumber);
  app.add_option("--seed", options.seed, "Of the routing");
  app.add_option("--file", options.path, "Where the experts are written to, and stay");
  CLI11_PARSE(app, argc, argv);
  fs::path path = options.path;
  if (path.empty()) {
    path = fs::temp_directory_path() / ("moe_offload_" + std::to_string(std::random_device{}()));
  }
  int status = 1;
  try {
    check_options(options);
    status = options.storage == "q8"     ? run<moe::q8>(options, path)
             : options.storage == "q4"   ? run<moe::q4>(options, path)
             : options.storage == "q4_k" ? run<moe::q4_k>(options, path)
             : options.storage == "fp8"  ? run<moe::fp8>(options, path)
                                         : run<moe::mxfp4>(options, path);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
  }
  if (options.path.empty()) {
    std::error_code unknown;
    fs::remove(path, unknown);
  }
  return status;
}
