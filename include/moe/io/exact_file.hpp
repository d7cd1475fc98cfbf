// SPDX-License-Identifier: Apache-2.0
// Whether a file is what a program wrote itself: its texts, tensors and data, each of which is what
// is expected, or a FormatError that names both.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "checksum.hpp"
#include "safetensors.hpp"

namespace moe::inline MOE_INSTRUCTION_SET::io::detail {

inline void check_metadata(const SafeTensors& file,
                           const std::map<std::string, std::string>& metadata) {
  std::map<std::string, std::string> both = metadata;
  both.insert(file.metadata().begin(), file.metadata().end());
  for (const auto& each : both) {
    const auto text_in = [&each](const std::map<std::string, std::string>& texts) {
      const auto found = texts.find(each.first);
      return found == texts.end() ? std::string("not there")
                                  : joined('"', printable(found->second), '"');
    };
    const std::string found = text_in(file.metadata()), expected = text_in(metadata);
    if (found != expected) {
      throw FormatError(file.file(), "", std::nullopt,
                        joined("__metadata__: \"", printable(each.first), "\" is ", found,
                               ", expected ", expected));
    }
  }
}

inline void check_tensor(const SafeTensors& file, const std::string& name, DType dtype,
                         const std::vector<Index>& shape, bool any_length) {
  const std::string expected =
      any_length ? joined(io::name(dtype), " of any length") : dtype_and_shape(dtype, shape);
  if (!file.contains(name)) {
    throw FormatError(file.file(), name, std::nullopt,
                      joined("no tensor of this name, expected ", expected));
  }
  const TensorView& found = file.at(name);
  const bool same_shape = any_length ? found.shape.size() == 1 : found.shape == shape;
  if (found.dtype != dtype || !same_shape) {
    throw FormatError(file.file(), name, found.file_offset,
                      joined(dtype_and_shape(found.dtype, found.shape), ", expected ", expected));
  }
}

inline void check_data(const SafeTensors& file, const std::string& name, std::uint64_t sum) {
  const TensorView& tensor = file.at(name);
  if (const std::uint64_t found = checksum(tensor.data); found != sum) {
    throw FormatError(
        file.file(), name, tensor.file_offset,
        joined("its data have the checksum ", found, ", expected ", sum, " as they were written"));
  }
}

}  // namespace moe::inline MOE_INSTRUCTION_SET::io::detail
