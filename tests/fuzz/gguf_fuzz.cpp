// SPDX-License-Identifier: Apache-2.0
// Bytes as a whole *.gguf; and once more before as many zeros as its tensors claim, so that what
// lies behind the last check of the header is reached more often. The tensors are decoded, and a
// model's first layer is loaded.
#include "fuzz_target.hpp"
#include "moe/io/load_layer.hpp"
#include "moe/storage.hpp"

namespace moe::fuzz {
namespace {

template <class T>
void decode_as(const io::TensorView& tensor) {
  const auto [elements, bytes] = io::block_size(tensor.dtype);
  require(tensor.data.size() % bytes == 0);
  const std::size_t blocks = tensor.data.size() / bytes;
  std::vector<T> values(blocks * elements);
  require(io::decode_blocks(tensor.dtype, tensor.data.data(), blocks, values.data()) ==
          io::is_decodable(tensor.dtype));
}

void use(const io::Gguf& file, std::size_t num_bytes) {
  std::uint64_t end = 0;
  for (const io::TensorView& tensor : file.tensors()) {
    require(&file.at(tensor.name) == &tensor);
    require(tensor.file_offset >= end);
    end = tensor.file_offset + tensor.data.size();
    require(end <= num_bytes);
    read_all(tensor.data);
    decode_as<float>(tensor);
    decode_as<double>(tensor);
    decode_as<Eigen::bfloat16>(tensor);
  }
  for (const auto& [key, fact] : file.facts()) {
    require(!key.empty() && fact.items.size() <= num_bytes);
    require(!fact.shown().empty());
  }
  require(!succeeds([&] { file.at(" no such "); }) || file.contains(" no such "));
}

/// What its keys make of a layer, by its architecture; and the first layer, if there is one.
void use_as_model(const std::vector<std::byte>& bytes) {
  static const std::filesystem::path path = own_folder("moe-gguf-fuzz") / "m.gguf";
  write_file(path, {reinterpret_cast<const char*>(bytes.data()), bytes.size()});
  io::TensorFiles files = io::TensorFiles::open(path);
  const io::ModelConfig config = io::gguf_config(files);
  const io::Family& family = io::family_of_gguf(config);
  for (const Index layer : {0, 1, 60}) {
    succeeds([&] { io::layer_config(family, config, layer).validate(); });
  }
  const bool loaded = succeeds([&] { io::load_layer<float>(path, 0); });
  const bool packed = succeeds([&] { io::load_packed<q4>(path, 0); });
  require(loaded == packed);
}

void read_file(const std::vector<std::byte>& bytes) {
  succeeds([&] {
    use(io::Gguf::from_bytes(bytes), bytes.size());
    use_as_model(bytes);
  });
}

/// As a header alone, in a file that is long enough for all that it claims up to a megabyte.
void read_header(std::vector<std::byte> bytes) {
  const std::string file = "header";
  std::vector<std::byte> longer = bytes;
  longer.resize(bytes.size() + 1'000'000);
  std::uint64_t size = 0;
  succeeds([&] { size = io::detail::GgufReader(longer, file, {}).read_tensors(); });
  if (size > 0 && size <= longer.size()) {
    longer.resize(static_cast<std::size_t>(size));
    read_file(longer);
  }
}

}  // namespace
}  // namespace moe::fuzz

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const auto bytes = std::as_bytes(std::span(moe::fuzz::text_of(data, size)));
  moe::fuzz::read_file({bytes.begin(), bytes.end()});
  moe::fuzz::read_header({bytes.begin(), bytes.end()});
  return 0;
}
