// SPDX-License-Identifier: Apache-2.0
// Bytes as a whole *.safetensors; and once more as a header of the right length, before as many
// bytes as its tensors claim, so that what lies behind the first checks is reached more often.
#include "fuzz_target.hpp"
#include "moe/io/safetensors.hpp"

namespace moe::fuzz {
namespace {

template <class T>
void read_as(const io::SafeTensors& file, const io::TensorView& tensor) {
  Index rows = 1;
  for (std::size_t i = 0; i + 1 < tensor.shape.size(); ++i) {
    rows *= tensor.shape[i];
  }
  const Index cols = tensor.shape.empty() ? 1 : tensor.shape.back();
  succeeds([&] {
    const Matrix<T> matrix = io::read_matrix<T>(file, tensor.name, rows, cols);
    require(matrix.rows() == rows && matrix.cols() == cols);
  });
  succeeds([&] { io::read_matrix<T>(file, tensor.name, rows, cols == 7 ? 8 : 7); });
}

void use(const io::SafeTensors& file, std::size_t num_bytes) {
  std::uint64_t covered = 0;
  for (const io::TensorView& tensor : file.tensors()) {
    require(&file.at(tensor.name) == &tensor);
    require(tensor.file_offset + tensor.data.size() <= num_bytes);
    covered += tensor.data.size();
    read_all(tensor.data);
    read_as<float>(file, tensor);
    read_as<double>(file, tensor);
    read_as<Eigen::bfloat16>(file, tensor);
    read_as<std::int32_t>(file, tensor);
  }
  require(covered <= num_bytes);
  require(!succeeds([&] { file.at(" no such "); }) || file.contains(" no such "));
}

void read_file(std::vector<std::byte> bytes) {
  const std::size_t size = bytes.size();
  succeeds([&] { use(io::SafeTensors::from_bytes(std::move(bytes)), size); });
}

/// Nothing of a header that is none, or of one that claims more than a megabyte.
std::size_t claimed_bytes(std::string_view json) {
  std::uint64_t end = 0;
  const std::string file = "header";
  const bool good = succeeds([&] {
    for (const auto& entry : io::detail::HeaderReader(json, file, {}).read().tensors) {
      end = std::max(end, entry.end);
    }
  });
  return good && end < 1'000'000 ? static_cast<std::size_t>(end) : 0;
}

void read_header(std::string_view json) {
  const std::uint64_t length = json.size();
  std::vector<std::byte> bytes(sizeof length + json.size() + claimed_bytes(json), std::byte{0x42});
  std::memcpy(bytes.data(), &length, sizeof length);
  std::memcpy(bytes.data() + sizeof length, json.data(), json.size());
  read_file(std::move(bytes));
}

}  // namespace
}  // namespace moe::fuzz

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string_view text = moe::fuzz::text_of(data, size);
  const auto bytes = std::as_bytes(std::span(text));
  moe::fuzz::read_file({bytes.begin(), bytes.end()});
  if (size > 0) {
    moe::fuzz::read_header(text.substr(text.front() == '{' || size < 8 ? 0 : 8));
  }
  return 0;
}
