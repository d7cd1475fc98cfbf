// SPDX-License-Identifier: Apache-2.0
// Bytes as a whole *.gguf; and once more before as many zeros as its tensors claim, so that what
// lies behind the last check of the header is reached more often. The tensors are decoded, and the
// keys are taken for a model's.
#include "fuzz_target.hpp"
#include "moe/io/families.hpp"
#include "moe/io/family_config.hpp"
#include "moe/io/gguf_blocks.hpp"
#include "moe/io/gguf_config.hpp"

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

/// What its keys make of a layer, by its architecture.
void use_as_model(io::Gguf file) {
  std::vector<io::Gguf> parts;
  parts.push_back(std::move(file));
  io::TensorFiles files(std::move(parts));
  const io::ModelConfig config = io::gguf_config(files);
  const io::Family& family = io::family_of_gguf(config);
  for (const Index layer : {0, 1, 60}) {
    succeeds([&] { io::layer_config(family, config, layer).validate(); });
  }
}

void read_file(std::vector<std::byte> bytes) {
  const std::size_t size = bytes.size();
  succeeds([&] {
    io::Gguf file = io::Gguf::from_bytes(std::move(bytes));
    use(file, size);
    use_as_model(std::move(file));
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
    read_file(std::move(longer));
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
