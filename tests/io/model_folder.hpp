// SPDX-License-Identifier: Apache-2.0
// A folder of a test's own with files of a model in it, gone afterwards; and the file, the tensor
// and the facts with which a bad one must be refused.
#pragma once

#include <filesystem>
#include <fstream>
#include <map>
#include <numeric>
#include <random>

#include "moe/types.hpp"
#include "safetensors_bytes.hpp"

namespace moe::io::testing {

namespace fs = std::filesystem;

/// A tensor that is to stand in a file.
struct NewTensor {
  std::string dtype;
  std::vector<Index> shape;
  FileBytes data;
};
using NewTensors = std::map<std::string, NewTensor>;

template <class T = float>
NewTensor tensor_of(std::string dtype, std::vector<Index> shape, const std::vector<T>& values) {
  return {std::move(dtype), std::move(shape), bytes_of(values)};
}

/// 0, 1, 2, ... from `first`.
inline NewTensor counted(std::vector<Index> shape, float first = 0) {
  const Index size = std::accumulate(shape.begin(), shape.end(), Index{1}, std::multiplies<>());
  std::vector<float> values(static_cast<std::size_t>(size));
  std::iota(values.begin(), values.end(), first);
  return tensor_of("F32", std::move(shape), values);
}

inline FileBytes safetensors_of(const NewTensors& tensors) {
  std::string json = "{";
  FileBytes data;
  for (const auto& [name, tensor] : tensors) {
    std::string shape;
    for (const Index size : tensor.shape) {
      shape += joined(shape.empty() ? "" : ",", size);
    }
    json += joined(json.size() > 1 ? "," : "", "\"", name, R"(":{"dtype":")", tensor.dtype,
                   R"(","shape":[)", shape, R"(],"data_offsets":[)", data.size(), ",",
                   data.size() + tensor.data.size(), "]}");
    data.insert(data.end(), tensor.data.begin(), tensor.data.end());
  }
  return file_of(json + "}", data);
}

class ModelFolder : public ::testing::Test {
 protected:
  void SetUp() override {
    const auto* const info = ::testing::UnitTest::GetInstance()->current_test_info();
    std::string name =
        joined("moe_", info->test_suite_name(), "_", info->name(), "_", std::random_device{}());
    std::replace(name.begin(), name.end(), '/', '_');
    folder_ = fs::path(::testing::TempDir()) / name;
    fs::create_directories(folder_);
  }
  void TearDown() override { fs::remove_all(folder_); }

  const fs::path& folder() const { return folder_; }
  fs::path write(const std::string& name, const FileBytes& bytes) const {
    fs::path path = folder_ / name;
    std::ofstream(path, std::ios::binary)
        .write(reinterpret_cast<const char*>(bytes.data()),
               static_cast<std::streamsize>(bytes.size()));
    return path;
  }
  fs::path write(const std::string& name, std::string_view text) const {
    return write(name, bytes_of(std::vector<char>(text.begin(), text.end())));
  }
  fs::path write(const std::string& name, const NewTensors& tensors) const {
    return write(name, safetensors_of(tensors));
  }

 private:
  fs::path folder_;
};

/// `act` must throw a FormatError that names this file, this tensor and every fact.
template <class Act>
void expect_fault(Act&& act, const fs::path& file, std::string_view tensor,
                  std::initializer_list<std::string_view> facts) {
  try {
    act();
    ADD_FAILURE() << "accepted, expected: " << *facts.begin();
  } catch (const FormatError& error) {
    expect_message(error, file.string(), facts);
    EXPECT_EQ(error.tensor(), tensor) << error.what();
  }
}

}  // namespace moe::io::testing
