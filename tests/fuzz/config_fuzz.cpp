// SPDX-License-Identifier: Apache-2.0
// Bytes up to a NUL as a config.json, of its own family or of any. A small layer of what is
// accepted is made, saved, loaded and run; the bytes behind the NUL change the saved file before
// that.
#include "fuzz_target.hpp"
#include "io/family_layer.hpp"
#include "moe/io/save_layer.hpp"

namespace moe::fuzz {
namespace {

const std::filesystem::path& folder() {
  static const std::filesystem::path made = own_folder("moe-config-fuzz");
  return made;
}
std::filesystem::path model_file() { return folder() / "model.safetensors"; }

bool is_small(const io::LayerConfig& config) {
  constexpr Index most = 16;
  return config.d_model <= most && config.d_ff <= most && config.num_experts <= 8 &&
         (!config.shared || config.shared->d_ff <= most) &&
         (!config.latent || config.latent->width <= most) &&
         config.router.selection.vocabulary <= 4 * most;
}

/// Each three bytes are a place and what is to stand there; one that is left is cut off the end.
void edit(std::string_view edits) {
  if (edits.empty()) {
    return;
  }
  const auto byte = [&](std::size_t i) { return static_cast<unsigned char>(edits[i]); };
  std::string text;
  {
    std::ifstream file(model_file(), std::ios::binary);
    text.assign(std::istreambuf_iterator<char>(file), {});
  }
  while (edits.size() >= 3) {
    text[(byte(0) * 256U + byte(1)) % text.size()] = edits[2];
    edits.remove_prefix(3);
  }
  if (!edits.empty()) {
    text.resize(text.size() - std::min<std::size_t>(text.size(), byte(0)));
  }
  write_file(model_file(), text);
}

struct Input {
  std::string_view text, edits;
};

template <class Layer>
void run(const Layer& layer, const io::LayerConfig& config) {
  const Matrix<float> x = Matrix<float>::Constant(2, config.d_model, 0.25F);
  Matrix<float> y(2, config.output_width());
  const std::array<std::int32_t, 2> ids{0, 0};
  typename Layer::Scratch scratch;
  layer.forward(x, y, scratch, {.tokens = {.ids = ids}});
}

/// load() is of the layer's type.
template <class Layer, class Load>
void save_and_load(const io::Family& family, const io::LayerConfig& config, const Input& input,
                   const Layer& saved, Load&& load) {
  const auto& [text, edits] = input;
  write_file(folder() / "config.json", text);
  io::save_layer(saved, family, folder());
  // Not where config.json says that the model has no such layer, or the file is another now.
  const bool is_there = succeeds([] { io::Checkpoint(folder()).block_of(0); });
  edit(edits);
  const bool loaded = succeeds([&] { run(load(), config); });
  require(loaded || !is_there || !edits.empty());
}

const io::Family& any_family(std::string_view text) {
  constexpr std::size_t count = std::size(io::detail::families);
  return io::detail::families[std::hash<std::string_view>()(text) % count];
}

void read(std::string_view text, std::string_view edits) {
  const io::ModelConfig config = io::ModelConfig::parse(text);
  const io::Family* family = nullptr;
  const bool known = succeeds([&] { family = &io::family_of(config); });
  if (!known) {
    family = &any_family(text);
  }
  for (const Index layer : {60, 1, 0}) {
    succeeds([&] {
      const io::LayerConfig made = io::layer_config(*family, config, layer);
      made.validate();
      if (known && layer == 0 && is_small(made)) {
        if (io::testing::has_product_keys(*family)) {
          return save_and_load(*family, made, {text, edits},
                               io::testing::random_product_key_layer<float>(made),
                               [] { return io::load_product_key_layer<float>(folder(), 0); });
        }
        io::testing::visit_layer_types(*family, [&]<class R, class E>(std::type_identity<R>,
                                                                      std::type_identity<E>) {
          save_and_load(*family, made, {text, edits}, io::testing::random_layer<float, R, E>(made),
                        [] { return io::load_layer<float, R, E>(folder(), 0); });
        });
      }
    });
  }
}

}  // namespace
}  // namespace moe::fuzz

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string_view all = moe::fuzz::text_of(data, size);
  const std::string_view text = all.substr(0, all.find('\0'));
  moe::fuzz::succeeds([&] { moe::fuzz::read(text, all.substr(std::min(size, text.size() + 1))); });
  return 0;
}
