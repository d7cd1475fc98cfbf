// SPDX-License-Identifier: Apache-2.0
// Bytes as the index of a sharded model, beside shards that are there: every tensor that an index
// names is the shard's own, or is refused.
#include <algorithm>

#include "fuzz_target.hpp"
#include "moe/io/tensor_files.hpp"
#include "moe/io/write_safetensors.hpp"
#include "small_shards.hpp"

namespace moe::fuzz {
namespace {

constexpr std::size_t most_tensors = 64;  // that are asked for

const std::filesystem::path& folder() {
  static const std::filesystem::path made = [] {
    std::filesystem::path path = own_folder("moe-index-fuzz");
    for (const SmallShard& shard : small_shards) {
      std::vector<io::TensorToWrite> tensors;
      for (const char* name : shard.tensors) {
        tensors.push_back({name, io::DType::U8, {3}, [name](std::span<std::byte> data) {
                             std::fill(data.begin(), data.end(), static_cast<std::byte>(name[0]));
                           }});
      }
      io::write_safetensors(path / shard.file, std::move(tensors));
    }
    return path;
  }();
  return made;
}

void use(io::TensorFiles files) {
  require(std::is_sorted(files.names().begin(), files.names().end()));
  for (std::size_t i = 0; i < std::min(most_tensors, files.names().size()); ++i) {
    const std::string& name = files.names()[i];
    require(files.contains(name));
    succeeds([&] {
      const io::FileTensor tensor = files.at(name);
      require(tensor.view.name == name && tensor.view.data.size() == 3);
      require(tensor.view.data[0] == static_cast<std::byte>(name[0]));
      require(std::filesystem::path(tensor.file).parent_path() == folder());
    });
  }
  succeeds([&] { files.at(" no such "); });
}

}  // namespace
}  // namespace moe::fuzz

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace moe::fuzz;
  const std::filesystem::path index = folder() / "model.safetensors.index.json";
  write_file(index, text_of(data, size));
  succeeds([] { use(moe::io::TensorFiles::open(folder())); });
  return 0;
}
