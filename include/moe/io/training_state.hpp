// SPDX-License-Identifier: Apache-2.0
// A training run <-> one *.safetensors: its parameters, what its optimisers keep, and whatever else
// it goes on from. One description of the run serves both ways:
//
//   const auto run = [&](moe::io::TrainingState& state) {
//     state.add("adam", adam, walk);      // parameters, moments, main weights, number of steps
//     state.add("tokens", tokens);        // a number or a matrix
//     state.add("shuffle", generator);    // of <random>
//     state.expect("config", text);       // what another run has not
//   };
//   moe::io::save_training_state("run/last.safetensors", run);
//   moe::io::load_training_state("run/last.safetensors", run);
#pragma once

#include <concepts>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <functional>
#include <istream>
#include <iterator>
#include <locale>
#include <map>
#include <memory>
#include <optional>
#include <ostream>
#include <span>
#include <sstream>
#include <stdexcept>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

#include "../train/optimiser.hpp"
#include "exact_file.hpp"
#include "write_safetensors.hpp"

namespace moe::inline MOE_INSTRUCTION_SET::io {

/// A generator or a distribution of <random>, or one that is written and read as they are.
template <class G>
concept RandomState = std::copyable<G> && requires(G& state, std::ostream& out, std::istream& in) {
  typename G::result_type;
  out << state;
  in >> state;
};

namespace detail {

template <RandomState G>
std::string text_of_state(const G& state) {
  std::ostringstream out;
  out.imbue(std::locale::classic());
  out << state;
  return out.str();
}

inline constexpr std::string_view checksums_name = "training_state.checksums";

}  // namespace detail

/// What makes up a run, by name: references, for the length of one save or load, which hands it to
/// the caller's description. Every add() and expect() throws std::invalid_argument for a name that
/// was there before.
class TrainingState {
 public:
  TrainingState(const TrainingState&) = delete;
  TrainingState& operator=(const TrainingState&) = delete;

  /// The parameters of the walk, under their names in it, and the optimiser's "<name>.steps",
  /// "<name>.<parameter>.moment.0", ..., "<name>.<parameter>.main". An optimiser that has made no
  /// step yet is prepared. Throws std::invalid_argument if the walk is not the one of its steps.
  template <Real W, class Rule, class Walk>
  void add(const std::string& name, Optimiser<W, Rule>& optimiser, Walk&& walk);
  /// A matrix, of the same size then. One that is column-major is in the file as its transpose.
  template <class M>
  requires Readable<typename M::Scalar>
  void add(const std::string& name, Eigen::PlainObjectBase<M>& matrix) {
    add_data(name, {matrix.outerSize(), matrix.innerSize()}, matrix.data(), matrix.size());
  }
  template <Readable T>
  void add(const std::string& name, T& number) {
    add_data(name, {}, &number, 1);
  }
  template <RandomState G>
  void add(const std::string& name, G& random);
  /// Text that must be the same when the run goes on, as what its config says.
  void expect(const std::string& name, const std::string& text) {
    moe::detail::throw_unless(metadata_.emplace(name, text).second, "training state: ", name,
                              " twice, expected once");
  }

 private:
  template <class Describe>
  friend void save_training_state(const std::filesystem::path& path, Describe&& describe);
  template <class Describe>
  friend void load_training_state(const std::filesystem::path& path, Describe&& describe);

  using Change = std::function<void()>;
  struct Entry {
    DType dtype = DType::U8;
    std::vector<Index> shape;
    std::function<void(std::span<std::byte>)> fill;
    /// Throws FormatError unless data can be read, and returns what does it, which throws nothing.
    std::function<Change(const TensorView& from, const std::string& file)> read;
    bool any_length = false;
  };

  explicit TrainingState(bool loads) : loads_(loads) {}

  void add_entry(const std::string& name, Entry entry) {
    moe::detail::throw_unless(
        name != detail::checksums_name && entries_.emplace(name, std::move(entry)).second,
        "training state: ", name, " twice, expected once");
  }
  template <class T>
  void add_data(const std::string& name, std::vector<Index> shape, T* data, Index size) {
    const std::size_t bytes = static_cast<std::size_t>(size) * sizeof(T);
    add_entry(name, {detail::dtype_of<T>, std::move(shape),
                     [data](std::span<std::byte> to) { copy(to.data(), data, to.size()); },
                     [data, bytes](const TensorView& from, const std::string&) -> Change {
                       return [data, bytes, from = from.data] { copy(data, from.data(), bytes); };
                     }});
  }
  static void copy(void* to, const void* from, std::size_t bytes) {
    if (bytes > 0) {
      std::memcpy(to, from, bytes);
    }
  }

  void save(const std::filesystem::path& path) const;
  void load(const SafeTensors& file) const;
  void check_file(const SafeTensors& file) const;

  bool loads_;
  std::map<std::string, Entry> entries_;
  std::map<std::string, std::string> metadata_ = {{"format", "pt"}, {"training_state", "1"}};
};

/// Writes what describe(TrainingState&) adds, with checksums of it. What stood at the path stays
/// until the new file is whole and on the disk, and takes its place at once, whether the disk runs
/// full or the process dies; what a killed writer left beside it goes then, so one process at a
/// time writes to a path. Throws FormatError where it cannot be written.
template <class Describe>
void save_training_state(const std::filesystem::path& path, Describe&& describe) {
  TrainingState state(false);
  describe(state);
  state.save(path);
}

/// Reads a run that has been saved into what describe(TrainingState&) adds. Throws FormatError,
/// naming file and tensor, what was found and expected, if the file is of another run (other names,
/// shapes, types, rules of optimisers or texts), or is not as it was written; nothing is changed
/// then. The file is in memory as a whole meanwhile.
template <class Describe>
void load_training_state(const std::filesystem::path& path, Describe&& describe) {
  const SafeTensors file = SafeTensors::load(path);
  TrainingState state(true);
  describe(state);
  state.load(file);
}

template <Real W, class Rule, class Walk>
void TrainingState::add(const std::string& name, Optimiser<W, Rule>& optimiser, Walk&& walk) {
  using Steps = Optimiser<W, Rule>;
  // A file that is refused leaves no trace in the optimiser: it is read into a copy.
  const auto own = loads_ ? std::make_shared<Steps>(optimiser) : nullptr;
  Steps& held = loads_ ? *own : optimiser;
  held.prepare(walk);
  walk([&](const auto& tensor, auto& parameter, const auto&) {
    add_data(moe::detail::text_of(tensor), {parameter.outerSize(), parameter.innerSize()},
             parameter.data(), parameter.size());
  });
  held.for_each_state([&](const std::string& tensor, auto& state) {
    add(detail::joined(name, ".", tensor), state);
  });
  const Index steps = optimiser.steps();
  add_entry(detail::joined(name, ".steps"),
            {detail::dtype_of<Index>,
             {},
             [steps](std::span<std::byte> to) { copy(to.data(), &steps, to.size()); },
             [own, &optimiser](const TensorView& from, const std::string& file) -> Change {
               Index number = 0;
               copy(&number, from.data.data(), sizeof number);
               try {
                 own->set_steps(number);
               } catch (const std::invalid_argument& refused) {
                 throw FormatError(file, from.name, from.file_offset, refused.what());
               }
               return [own, &optimiser] { optimiser = std::move(*own); };
             }});
  expect(detail::joined(name, ".rule"), std::string(Rule::name));
}

template <RandomState G>
void TrainingState::add(const std::string& name, G& random) {
  const std::string text = detail::text_of_state(random);
  add_entry(name, {DType::U8,
                   {static_cast<Index>(text.size())},
                   [text](std::span<std::byte> to) { copy(to.data(), text.data(), to.size()); },
                   [&random](const TensorView& from, const std::string& file) -> Change {
                     const std::string found(reinterpret_cast<const char*>(from.data.data()),
                                             from.data.size());
                     G read = random;
                     std::istringstream in(found);
                     in.imbue(std::locale::classic());
                     in >> read;
                     if (!in || detail::text_of_state(read) != found) {
                       throw FormatError(file, from.name, from.file_offset,
                                         detail::joined("\"", printable(found, 40),
                                                        "\", expected a state of the generator"));
                     }
                     return [&random, read] { random = read; };
                   },
                   true});
}

inline void TrainingState::save(const std::filesystem::path& path) const {
  std::vector<TensorToWrite> tensors;
  std::vector<std::uint64_t> sums;
  std::vector<std::byte> data;
  for (const auto& [name, entry] : entries_) {
    tensors.push_back({name, entry.dtype, entry.shape, entry.fill});
    data.resize(tensors.back().bytes());
    entry.fill(data);
    sums.push_back(detail::checksum(data));
  }
  tensors.push_back(
      {std::string(detail::checksums_name),
       DType::U64,
       {std::ssize(sums)},
       [&sums](std::span<std::byte> to) { copy(to.data(), sums.data(), to.size()); }});
  write_safetensors(path, std::move(tensors), metadata_);
  detail::remove_parts(path);
}

inline void TrainingState::load(const SafeTensors& file) const {
  check_file(file);
  std::vector<Change> changes;
  for (const auto& [name, entry] : entries_) {
    changes.push_back(entry.read(file.at(name), file.file()));
  }
  for (const Change& change : changes) {
    change();
  }
}

inline void TrainingState::check_file(const SafeTensors& file) const {
  detail::check_metadata(file, metadata_);
  for (const auto& [name, entry] : entries_) {
    detail::check_tensor(file, name, entry.dtype, entry.shape, entry.any_length);
  }
  const std::string sums(detail::checksums_name);
  for (const TensorView& tensor : file.tensors()) {
    if (tensor.name != sums && !entries_.contains(tensor.name)) {
      throw FormatError(file.file(), tensor.name, tensor.file_offset,
                        detail::joined(detail::dtype_and_shape(tensor.dtype, tensor.shape),
                                       ", expected no tensor of this name"));
    }
  }
  detail::check_tensor(file, sums, DType::U64, {std::ssize(entries_)}, false);
  const std::byte* expected = file.at(sums).data.data();
  for (const auto& [name, entry] : entries_) {
    std::uint64_t sum = 0;
    copy(&sum, expected, sizeof sum);
    expected += sizeof sum;
    detail::check_data(file, name, sum);
  }
}

}  // namespace moe::inline MOE_INSTRUCTION_SET::io
