// SPDX-License-Identifier: Apache-2.0
// storage_check FILE...: decodes weights as they lie in files, and compares them with recorded
// values, decoded64.<name> and decoded32.<name>, which a GGUF file has beside it. A line per file
// and one per tensor; exit status 1 on any difference, and on a tensor that is decoded by no one.
#include <cmath>
#include <cstdio>
#include <exception>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "moe/io/encoded_weight.hpp"
#include "moe/io/gguf.hpp"
#include "moe/io/gguf_blocks.hpp"

namespace {

using namespace moe::io;
using moe::Index;

/// The values of a tensor. Where they are quotients they are rounded, and so are recorded ones.
struct Decoded {
  std::string how;
  std::vector<double> values;
  bool exact = true;
};

Index size_of(const std::vector<Index>& shape) {
  Index size = 1;
  for (const Index dimension : shape) {
    size *= dimension;
  }
  return size;
}

/// Of a file of safetensors, with the names of all that is read for it.
class Decoder {
 public:
  explicit Decoder(TensorFiles& files) : files_(files) {}

  Decoded operator()(const std::string& name, const std::vector<Index>& shape) {
    Decoded decoded;
    decoded.values.resize(static_cast<std::size_t>(size_of(shape)));
    for (const char* table : {"bytes.", "nibbles."}) {
      if (files_.contains(table + name)) {
        read_table(table + name, decoded);
        return decoded;
      }
    }
    if (const Encoding* const encoding = encoding_of(files_, name)) {
      const EncodedWeight weight(files_, name, *encoding, shape);
      used_.insert(weight.tensors().begin(), weight.tensors().end());
      for (Index at = 0, row = 0; at < size_of(shape); at += weight.width(), ++row) {
        weight.read_row(row, decoded.values.data() + at);
      }
      decoded.how = encoding->name;
      decoded.exact = !encoding->divides;
      return decoded;
    }
    const Place place{.tensor = name, .shape = shape};
    const FileTensor tensor = files_.at(name);
    check_place(tensor, place);
    used_.insert(name);
    detail::read_floats(tensor.view, 0, size_of(shape), decoded.values.data());
    decoded.how = moe::io::name(tensor.view.dtype);
    return decoded;
  }

  const std::set<std::string>& used() const { return used_; }

 private:
  void read_table(const std::string& name, Decoded& decoded) {
    const TensorView& view = files_.at(name).view;
    used_.insert(name);
    decoded.how = moe::io::name(view.dtype);
    for (std::size_t i = 0; i < (std::min)(decoded.values.size(), view.data.size()); ++i) {
      const auto byte = std::to_integer<std::uint8_t>(view.data[i]);
      decoded.values[i] =
          view.dtype == DType::F8_E4M3   ? moe::kernels::convert<double>(moe::kernels::e4m3{byte})
          : view.dtype == DType::F8_E5M2 ? moe::kernels::convert<double>(moe::kernels::e5m2{byte})
          : view.dtype == DType::F8_E8M0 ? moe::kernels::convert<double>(moe::kernels::e8m0{byte})
                                         : static_cast<double>(moe::kernels::widen_e2m1(byte));
    }
  }

  TensorFiles& files_;
  std::set<std::string> used_;
};

/// Numbers that differ; zeros of either sign do not.
template <class T>
Index differences(const std::vector<double>& values, const moe::Matrix<T>& recorded, bool exact) {
  Index count = 0;
  for (Index i = 0; i < recorded.size(); ++i) {
    const T got = static_cast<T>(values[static_cast<std::size_t>(i)]), want = recorded.data()[i];
    const T bound = exact ? T(0) : 2 * std::numeric_limits<T>::epsilon() * std::abs(want);
    const bool same =
        (std::isnan(got) && std::isnan(want)) || got == want || std::abs(got - want) <= bound;
    count += same ? 0 : 1;
  }
  return count;
}

/// Each tensor that `recorded` has values of, by what decode(name, shape) makes of it.
template <class Decode>
bool compare(const SafeTensors& recorded, Decode&& decode) {
  constexpr std::string_view wide = "decoded64.", narrow = "decoded32.";
  bool ok = true;
  for (const TensorView& tensor : recorded.tensors()) {
    if (!tensor.name.starts_with(wide)) {
      continue;
    }
    const std::string name = tensor.name.substr(wide.size()), in_float = std::string(narrow) + name;
    try {
      const Decoded got = decode(name, tensor.shape);
      const Index size = size_of(tensor.shape),
                  last = tensor.shape.empty() ? 1 : tensor.shape.back();
      const Index rows = size / (std::max)(last, Index{1});
      Index off = differences(got.values, read_matrix<double>(recorded, tensor.name, rows, last),
                              got.exact);
      if (recorded.contains(in_float)) {
        off +=
            differences(got.values, read_matrix<float>(recorded, in_float, rows, last), got.exact);
      }
      ok = ok && off == 0;
      std::printf("  %s: %s, %lld values, %lld differ  %s\n", name.c_str(), got.how.c_str(),
                  static_cast<long long>(size), static_cast<long long>(off),
                  off == 0 ? "ok" : "FAIL");
    } catch (const FormatError& error) {
      ok = false;
      std::printf("  %s: %s  FAIL\n", name.c_str(), error.what());
    }
  }
  return ok;
}

bool check_safetensors(const std::string& path) {
  const SafeTensors recorded = SafeTensors::load(path);
  TensorFiles files(SafeTensors::load(path));
  Decoder decode(files);
  bool ok = compare(recorded, [&](const std::string& name, const std::vector<Index>& shape) {
    return decode(name, shape);
  });
  for (const std::string& name : files.names()) {
    if (!name.starts_with("decoded") && !decode.used().contains(name)) {
      ok = false;
      std::printf("  %s: decoded by no one  FAIL\n", name.c_str());
    }
  }
  return ok;
}

/// The first elements of a tensor, in blocks or in floats: as many as are recorded.
Decoded decode_first(const Gguf& file, const std::string& name, const std::vector<Index>& shape) {
  const TensorView& view = file.at(name);
  const auto [elements, bytes] = block_size(view.dtype);
  const Index count = size_of(shape);
  if (count > size_of(view.shape) || count % static_cast<Index>(elements) != 0) {
    throw FormatError(file.file(), name, std::nullopt, "less elements than are recorded");
  }
  Decoded decoded{.how = std::string(moe::io::name(view.dtype)),
                  .values = std::vector<double>(static_cast<std::size_t>(count))};
  if (is_block(view.dtype)) {
    if (!decode_blocks(view.dtype, view.data.data(), decoded.values.size() / elements,
                       decoded.values.data())) {
      throw FormatError(file.file(), name, std::nullopt, decoded.how + " is not decoded");
    }
  } else {
    check_place({view, file.file()}, {.tensor = name, .shape = view.shape});
    moe::io::detail::read_floats(view, 0, count, decoded.values.data());
  }
  return decoded;
}

/// a.gguf against a.decoded.safetensors, which has values of all its tensors.
bool check_gguf(const std::string& path) {
  const Gguf file = Gguf::load(path);
  const SafeTensors recorded =
      SafeTensors::load(path.substr(0, path.size() - 5) + ".decoded.safetensors");
  bool ok = compare(recorded, [&](const std::string& name, const std::vector<Index>& shape) {
    return decode_first(file, name, shape);
  });
  for (const TensorView& tensor : file.tensors()) {
    if (!recorded.contains("decoded64." + tensor.name)) {
      ok = false;
      std::printf("  %s: no values of it are recorded  FAIL\n", tensor.name.c_str());
    }
  }
  return ok;
}

bool check(const std::string& path) {
  bool ok = false;
  try {
    if (path.ends_with(".safetensors")) {
      ok = check_safetensors(path);
    } else if (is_gguf(path)) {
      ok = check_gguf(path);
    } else {
      std::printf("  expected a file of safetensors or of GGUF\n");
    }
  } catch (const std::exception& error) {
    std::printf("  %s\n", error.what());
  }
  std::printf("%s  %s\n", path.c_str(), ok ? "ok" : "FAIL");
  return ok;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 2) {
    std::fprintf(stderr, "usage: storage_check FILE...\n");
    return 1;
  }
  bool ok = true;
  for (int i = 1; i < argc; ++i) {
    ok = check(argv[i]) && ok;
  }
  return ok ? 0 : 1;
}
