// SPDX-License-Identifier: Apache-2.0
// decoder DIR --ids 1,2,3: a Mixture-of-Experts model in the form of a Hugging Face directory goes
// on with texts of token ids; it prints the best logits, the tokens that follow, and tokens a
// second. decoder DIR --check FILE compares it with what another program has recorded of it.
//
// Where the library sits in an engine: model.hpp is the flow, feed_forward.hpp has the MoE blocks,
// which are the library's. Attention with its cache, norms and embedding are this folder's own.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <charconv>
#include <chrono>
#include <cstdio>
#include <fstream>
#include <moe/io/safetensors.hpp>
#include <nlohmann/json.hpp>
#include <numeric>
#include <optional>
#include <sstream>

#include "check.hpp"

using Json = nlohmann::ordered_json;
using moe::Index;
using Texts = std::vector<std::vector<decoder::TokenId>>;

struct Options {
  std::string directory, file, check, storage = "float32";
  std::vector<std::string> ids;
  Index count = 16, top = 5;
  double tolerance = 1e-4;
  bool json = false;
};

double seconds_of(const auto& work) {
  const auto start = std::chrono::steady_clock::now();
  work();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

/// "1, 2 3": with commas or blanks between them.
std::vector<decoder::TokenId> ids_of(std::string text) {
  std::replace(text.begin(), text.end(), ',', ' ');
  std::istringstream words(text);
  std::vector<decoder::TokenId> ids;
  for (std::string word; words >> word;) {
    decoder::TokenId id = 0;
    const auto [end, error] = std::from_chars(word.data(), word.data() + word.size(), id);
    if (error != std::errc() || end != word.data() + word.size()) {
      throw std::invalid_argument("\"" + moe::io::printable(word, 40) + "\", expected a token id");
    }
    ids.push_back(id);
  }
  return ids;
}

/// A text each: those of --ids, and the lines of --file.
Texts prompts_of(const Options& options) {
  Texts texts;
  for (const std::string& text : options.ids) {
    texts.push_back(ids_of(text));
  }
  if (!options.file.empty()) {
    std::ifstream file(options.file);
    for (std::string line; std::getline(file, line);) {
      texts.push_back(ids_of(line));
    }
    if (!file.eof()) {
      throw std::invalid_argument("cannot read " + options.file);
    }
  }
  if (texts.empty()) {
    throw std::invalid_argument("no token, expected --ids, --file or --check");
  }
  return texts;
}

/// The best logits of a row with their tokens.
Json best_of(const decoder::Rows& logits, Index row, Index top) {
  std::vector<Index> ids(static_cast<std::size_t>(logits.cols()));
  std::iota(ids.begin(), ids.end(), Index{0});
  const auto end = ids.begin() + (std::min)(top, logits.cols());
  std::partial_sort(ids.begin(), end, ids.end(), [&](Index a, Index b) {
    return logits(row, a) > logits(row, b) || (!(logits(row, a) < logits(row, b)) && a < b);
  });
  Json all = Json::array();
  std::for_each(ids.begin(), end, [&](Index id) {
    all.push_back({{"id", id}, {"logit", logits(row, id)}});
  });
  return all;
}

template <moe::Storage S>
Json generate(const Options& options) {
  const Texts prompts = prompts_of(options);
  const decoder::Model<S> model(options.directory);
  std::optional<decoder::Session<S>> session;
  const double prefill = seconds_of([&] { session.emplace(model, prompts); });
  double decode = 0.0;
  Json texts = Json::array();
  Index num_prompt_tokens = 0;
  for (const auto& prompt : prompts) {
    texts.push_back({{"prompt", prompt}, {"tokens", Json::array()}, {"logits", Json::array()}});
    num_prompt_tokens += static_cast<Index>(prompt.size());
  }
  for (Index step = 0; step < options.count; ++step) {
    const auto next = decoder::likeliest(session->logits());
    for (std::size_t i = 0; i < prompts.size(); ++i) {
      texts[i]["tokens"].push_back(next[i]);
      texts[i]["logits"].push_back(best_of(session->logits(), static_cast<Index>(i), options.top));
    }
    if (step + 1 < options.count) {
      decode += seconds_of([&] { session->append(next); });
    }
  }
  const auto per_second = [](Index tokens, double seconds) {
    return tokens > 0 ? Json(static_cast<double>(tokens) / seconds) : Json(nullptr);
  };
  const Index decoded = (options.count - 1) * static_cast<Index>(prompts.size());
  return {{"texts", texts},
          {"prompt_tokens_per_second", per_second(num_prompt_tokens, prefill)},
          {"tokens_per_second", per_second(decoded, decode)}};
}

void print_texts(const Json& all) {
  for (const Json& text : all["texts"]) {
    std::printf("prompt %s\n", text["prompt"].dump().c_str());
    for (std::size_t step = 0; step < text["tokens"].size(); ++step) {
      std::printf("  token %lld   logits", text["tokens"][step].get<long long>());
      for (const Json& each : text["logits"][step]) {
        std::printf("  %lld: %.5g", each["id"].get<long long>(), each["logit"].get<double>());
      }
      std::printf("\n");
    }
    std::printf("tokens %s\n\n", text["tokens"].dump().c_str());
  }
  std::printf("%.1f tokens/s of the prompts\n", all["prompt_tokens_per_second"].get<double>());
  if (all["tokens_per_second"].is_number()) {
    std::printf("%.1f tokens/s after them\n", all["tokens_per_second"].get<double>());
  }
}

Json check(const Options& options) {
  const auto expected = moe::io::SafeTensors::map(options.check);
  const decoder::Model<float> model(options.directory);
  const decoder::Report report = decoder::Check(model, expected).run(options.tolerance);
  Json all{{"passed", report.passed()}, {"tolerance", report.tolerance}};
  for (const auto& [tensor, largest] : report.differences) {
    all["differences"][tensor] = largest;
  }
  all["different_experts"] = report.different_experts;
  all["different_tokens"] = Json::array();
  for (const auto& [place, wanted, found] : report.tokens) {
    all["different_tokens"].push_back({{"place", place}, {"expected", wanted}, {"found", found}});
  }
  return all;
}

void print_check(const Json& all) {
  std::printf("largest differences, of which %.1e is allowed\n", all["tolerance"].get<double>());
  for (const auto& [tensor, largest] : all["differences"].items()) {
    std::printf("  %-20s %.2e\n", tensor.c_str(), largest.get<double>());
  }
  std::printf("%lld choices of experts differ\n", all["different_experts"].get<long long>());
  std::printf("%zu tokens differ\n", all["different_tokens"].size());
  for (const Json& token : all["different_tokens"]) {
    std::printf("  %s: %lld, expected %lld\n", token["place"].get<std::string>().c_str(),
                token["found"].get<long long>(), token["expected"].get<long long>());
  }
  std::printf("%s\n", all["passed"].get<bool>() ? "passed" : "FAILED");
}

/// The exit code.
int run(const Options& options) {
  if (!options.check.empty()) {
    const Json all = check(options);
    options.json ? void(std::puts(all.dump(2).c_str())) : print_check(all);
    return all["passed"].get<bool>() ? 0 : 1;
  }
  const Json all =
      options.storage == "float32" ? generate<float>(options) : generate<moe::bf16>(options);
  options.json ? void(std::puts(all.dump(2).c_str())) : print_texts(all);
  return 0;
}

int main(int argc, char** argv) {
  Options options;
  CLI::App app(
      "Greedy continuation by a Mixture-of-Experts model. Exit code 1: a check failed; 2: "
      "something cannot be read or is no such model");
  app.add_option("directory", options.directory, "With config.json and the weights")->required();
  app.add_option("--ids", options.ids, "A text, as 1,2,3; may be given several times")->take_all();
  app.add_option("--file", options.file, "Texts, one a line");
  app.add_option("--count", options.count, "Tokens to follow")->check(CLI::PositiveNumber);
  app.add_option("--top", options.top, "Logits to print of each")->check(CLI::NonNegativeNumber);
  auto* const storage =
      app.add_option("--storage", options.storage, "Of the feed-forwards' weights in memory")
          ->check(CLI::IsMember({"float32", "bfloat16"}));
  app.add_option("--check", options.check, "A safetensors file with what is to come out")
      ->excludes(storage);
  app.add_option("--tolerance", options.tolerance, "Of the check")->check(CLI::NonNegativeNumber);
  app.add_flag("--json", options.json, "Print JSON");
  CLI11_PARSE(app, argc, argv);
  try {
    return run(options);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 2;
  }
}
