// SPDX-License-Identifier: Apache-2.0
// moe_inspect PATH: what the MoE layers of a checkpoint or of a GGUF file are - family, sizes,
// router, storage, bytes - what one costs, and where its router sends tokens. Of the weights it
// reads the router's alone, so a model larger than memory will do. Without a path it inspects a
// small model that it makes.
#include <moe/io/load_layer.hpp>
#include <moe/io/save_layer.hpp>
#include <moe/moe.hpp>

#include <CLI/CLI.hpp>
#include <cmath>
#include <cstdio>
#include <fstream>
#include <numeric>
#include <random>

#include "moe_inspect/describe.hpp"

using moe_inspect::Json;
namespace fs = std::filesystem;
namespace io = moe::io;

struct Options {
  std::string path, stack, input;
  moe::Index layer = -1, tokens = 1024;
  unsigned seed = 1;
  bool json = false, families = false;
};

// A Mixtral of three decoder layers, the second of them dense, in a folder of its own.
fs::path made_model() {
  const fs::path folder =
      fs::temp_directory_path() / ("moe_inspect_" + std::to_string(std::random_device{}()));
  fs::create_directories(folder);
  std::ofstream(folder / "config.json")
      << R"({"model_type": "mixtral", "hidden_size": 64, "intermediate_size": 96,
             "num_local_experts": 8, "num_experts_per_tok": 2, "num_hidden_layers": 3})";
  const moe::MoEConfig config{.d_model = 64, .d_ff = 96, .num_experts = 8, .top_k = 2};
  const moe::MoELayer<moe::bf16> first(config, 1), third(config, 3);
  io::save_layers<moe::bf16>({{"model.layers.0.", &first}, {"model.layers.2.", &third}},
                             *io::find_family("mixtral"), folder);
  return folder;
}

// (N, d_model): the tensor "x" of a file.
moe::Matrix<float> read_tokens(const std::string& path, moe::Index d_model) {
  const auto file = io::SafeTensors::map(path);
  const auto& shape = file.at("x").shape;
  moe::Index rows = 1;
  for (std::size_t i = 0; i + 1 < shape.size(); ++i) {
    rows *= shape[i];
  }
  return io::read_matrix<float>(file, "x", rows, d_model);
}

// (N, d_model), standard normal.
moe::Matrix<float> draw_tokens(const Options& options, moe::Index d_model) {
  std::mt19937 random(options.seed);
  std::normal_distribution<float> draw;
  return moe::Matrix<float>::NullaryExpr(options.tokens, d_model, [&] { return draw(random); });
}

// Tensors and bytes of a layer's block in the files, by their type there.
Json storage_of(io::Checkpoint& model, moe::Index layer) {
  std::map<io::DType, std::pair<int, std::size_t>> sums;
  const auto names = io::left_over(model.family(), model.layer_prefix(layer), model.block_of(layer),
                                   model.files().names(), {});
  for (const std::string& tensor : names) {
    const io::TensorView& view = model.files().at(tensor).view;
    auto& [tensors, bytes] = sums[view.dtype];
    tensors += 1;
    bytes += view.data.size();
  }
  Json all = Json::object();
  for (const auto& [dtype, sum] : sums) {
    all[std::string(name(dtype))] = {{"tensors", sum.first}, {"bytes", sum.second}};
  }
  return all;
}

// As if none of the experts that a token takes were one that computes nothing, all were as wide as
// the first, and every router a linear one.
Json cost_of(const io::LayerConfig& config) {
  const bool rank_one = config.is_rank_one();
  const moe::ProductKeyLayerConfig keys = io::product_key_layer_config(config);
  moe::ParameterCount count = rank_one ? moe::parameters(keys) : moe::parameters(config);
  count.total -= config.zero.num_experts() * count.expert;
  double flops = rank_one ? moe::forward_flops(keys, moe::predicted_work(keys, 1)).total()
                          : moe::forward_flops(config, moe::predicted_work(config, 1)).total();
  if (const auto& [number, d_ff, scale] = config.adjugate; number > 0) {
    const moe::FfnShape small{config.expert_d_in(), d_ff, config.expert_d_out(), config.expert};
    count.total += number * small.parameters();
    count.active += std::min(number, config.top_k) * small.parameters();
    flops += moe::adjugate_flops(small, config.top_k).total();
  }
  const auto router = static_cast<double>(count.router) * 4,
             rest = static_cast<double>(count.total - count.router);
  return {{"parameters", count.total},
          {"active_parameters", count.active},
          {"flops_per_token", flops},
          {"bytes_in_memory", {{"float32", router + rest * 4}, {"bfloat16", router + rest * 2}}}};
}

// Rows of each expert, their entropy as a share of the even one's, and dropped choices. Where there
// are two sets of experts every other token is one for the second.
template <class RouterT>
Json routing_of(const RouterT& router, const io::LayerConfig& config, const moe::Matrix<float>& x,
                unsigned seed) {
  moe::CallOptions call;
  std::vector<std::int32_t> ids;
  if (const moe::Index vocabulary = config.router.selection.vocabulary; vocabulary > 0) {
    std::mt19937 random(seed);
    std::uniform_int_distribution<std::int32_t> draw(0, static_cast<std::int32_t>(vocabulary - 1));
    ids.resize(static_cast<std::size_t>(x.rows()));
    std::generate(ids.begin(), ids.end(), [&] { return draw(random); });
    call.tokens.ids = ids;
  }
  moe::ExpertMask mask;
  if (config.second_experts > 0) {
    std::vector<std::uint8_t> second(static_cast<std::size_t>(x.rows()));
    for (std::size_t token = 1; token < second.size(); token += 2) {
      second[token] = 1;
    }
    mask = io::mask_of_sets(config, second);
    call.expert_mask = &mask;
  }
  typename RouterT::Table table;
  router.route(x, call, table);
  moe::KeptChoices kept;
  kept.select(table, config.num_experts, config.capacity, {});
  std::vector<moe::Index> rows(static_cast<std::size_t>(config.num_experts));
  moe::Index dropped = 0;
  for (moe::Index choice = 0; choice < table.expert.size(); ++choice) {
    const moe::ExpertId expert = table.expert(choice / table.top_k(), choice % table.top_k());
    if (expert != moe::none) {
      (kept[choice] ? rows[static_cast<std::size_t>(expert)] : dropped) += 1;
    }
  }
  const auto sum = static_cast<double>(std::accumulate(rows.begin(), rows.end(), moe::Index{0}));
  double entropy = 0.0;
  for (const moe::Index count : rows) {
    const double share = static_cast<double>(count) / sum;
    entropy -= count > 0 ? share * std::log(share) : 0.0;
  }
  const double even = std::log(static_cast<double>(config.num_experts));
  return {{"tokens", x.rows()},
          {"rows", rows},
          {"entropy", config.num_experts > 1 ? entropy / even : 1.0},
          {"dropped", dropped}};
}

Json inspect(const Options& options) {
  io::Checkpoint model(options.path, {.stack = options.stack});
  const io::Family& family = model.family();
  const auto layers = model.layers();
  const moe::Index layer = options.layer < 0 && !layers.empty() ? layers.front() : options.layer;
  const io::LayerConfig config = model.layer_config(layer);
  Json all{{"family", family.name()}, {"proven_by", family.proven_by}, {"doubt", family.doubt}};
  for (const moe::Index each : layers) {
    all["layers"].push_back({{"layer", each}, {"storage", storage_of(model, each)}});
  }
  all["multi_token_prediction"] = model.multi_token_prediction();
  all["layer"] = layer;
  all["sizes"] = moe_inspect::sizes_of(config);
  all["router"] = moe_inspect::router_of(config);
  all["expert"] = moe_inspect::expert_of(config);
  all["shared"] = moe_inspect::shared_of(config);
  all["cost"] = cost_of(config);
  moe::Matrix<float> x;
  if (!options.input.empty()) {  // before the weights, as its faults are none of the model's
    x = read_tokens(options.input, config.d_model);
  }
  try {
    const io::LayerReader reader(model, layer);
    const auto routing = [&]<class RouterT>(std::type_identity<RouterT>) {
      const RouterT router = reader.router<RouterT>();
      if (options.input.empty()) {  // of a width that the weights have
        x = draw_tokens(options, config.d_model);
      }
      return routing_of(router, config, x, options.seed);
    };
    all["routing"] = config.is_rank_one()
                         ? routing(std::type_identity<moe::ProductKeyRouter<float>>{})
                         : io::visit_router_type<float>(config.router_type, routing);
  } catch (const io::FormatError& error) {  // all else can be told
    all["cannot_load"] = error.what();
  }
  return all;
}

void print_routing(const Json& routing) {
  const auto rows = routing["rows"].get<std::vector<moe::Index>>();
  const moe::Index most = std::max<moe::Index>(1, *std::max_element(rows.begin(), rows.end()));
  std::printf("\nrows of each expert, %lld tokens (entropy %.3f of an even load, %lld dropped)\n",
              routing["tokens"].get<long long>(), routing["entropy"].get<double>(),
              routing["dropped"].get<long long>());
  for (std::size_t e = 0; e < rows.size(); ++e) {
    const std::string bar(static_cast<std::size_t>(rows[e] * 50 / most), '#');
    std::printf("%5zu %7lld %s\n", e, static_cast<long long>(rows[e]), bar.c_str());
  }
}

void print(const Json& all) {
  const auto text = [&](const char* key) { return all[key].get<std::string>(); };
  std::printf("family %s, %s%s\n", text("family").c_str(),
              text("proven_by").empty() ? "of which no recorded layer is among the tests"
                                        : "proven by recorded layers",
              text("doubt").empty() ? "" : (", not certain: " + text("doubt")).c_str());
  for (const Json& layer : all["layers"]) {
    std::printf("layer %lld", layer["layer"].get<long long>());
    for (const auto& [dtype, count] : layer["storage"].items()) {
      std::printf("  %s: %lld tensors, %lld bytes", dtype.c_str(),
                  count["tensors"].get<long long>(), count["bytes"].get<long long>());
    }
    std::printf("\n");
  }
  for (const Json& prefix : all["multi_token_prediction"]) {
    std::printf("not counted, predicts further tokens: %s\n", prefix.get<std::string>().c_str());
  }
  for (const char* part : {"sizes", "router", "expert", "shared", "cost"}) {
    std::printf("\nlayer %lld, %s\n", all["layer"].get<long long>(), part);
    for (const auto& [key, value] : all[part].items()) {
      std::printf("  %-18s %s\n", key.c_str(), value.dump().c_str());
    }
  }
  if (all.contains("cannot_load")) {
    std::printf("\ncannot be loaded: %s\n", text("cannot_load").c_str());
  } else {
    print_routing(all["routing"]);
  }
}

// A table in Markdown.
void print_families() {
  std::printf("| `model_type` | proven by recorded layers | not certain |\n|---|---|---|\n");
  for (const io::Family& family : io::detail::families) {
    std::printf("| %s | %s | %s |\n", std::string(family.model_types).c_str(),
                family.proven_by.empty() ? "no" : std::string(family.proven_by).c_str(),
                std::string(family.doubt).c_str());
  }
  std::printf("\n| architecture of a GGUF file | not certain |\n|---|---|\n");
  for (const io::Family& family : io::detail::gguf_families) {
    std::printf("| %s | %s |\n", std::string(family.model_types).c_str(),
                std::string(family.doubt).c_str());
  }
}

int main(int argc, char** argv) {
  Options options;
  CLI::App app("The MoE layers of a checkpoint");
  app.add_option("path", options.path,
                 "Directory with config.json and the weights, or a GGUF file (the first part)");
  app.add_option("--layer", options.layer, "Decoder layer (the first MoE layer)")
      ->check(CLI::NonNegativeNumber);
  app.add_option("--stack", options.stack, "Prefix of the layers, where there are several");
  app.add_option("--input", options.input, "A safetensors file whose tensor x is to be routed");
  app.add_option("--tokens", options.tokens, "Random tokens, without an input")
      ->check(CLI::PositiveNumber);
  app.add_option("--seed", options.seed, "Of the random tokens");
  app.add_flag("--json", options.json, "Print JSON");
  app.add_flag("--families", options.families, "Print the families that are known, and no model");
  CLI11_PARSE(app, argc, argv);
  if (options.families) {
    print_families();
    return 0;
  }
  fs::path made;
  int status = 0;
  try {
    if (options.path.empty()) {
      options.path = (made = made_model()).string();
    }
    const Json all = inspect(options);
    if (!made.empty() && !options.json) {
      std::printf("no path, so of a small model that was made up\n");
    }
    options.json ? void(std::puts(all.dump(2).c_str())) : print(all);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    status = 1;
  }
  if (!made.empty()) {
    fs::remove_all(made);
  }
  return status;
}
