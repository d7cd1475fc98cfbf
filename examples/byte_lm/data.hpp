// SPDX-License-Identifier: Apache-2.0
// Text: files of bytes, a language or a source each. The end of each file is kept from training:
// 5 % for validation and 5 % for the test, cut at the end of a line where there is one.
//
// The bytes of a split stand in a line, those of one file behind those of another; a place in it is
// a byte to predict that has all of its context in its own file and split.
#pragma once

#include <array>
#include <filesystem>
#include <fstream>
#include <numeric>
#include <stdexcept>
#include <string>

#include "parts.hpp"
#include "records.hpp"

namespace byte_lm {

enum class Split { train, validation, test };

class Corpus {
 public:
  /// Files, or folders of which every *.txt is taken, in the order of their names. Throws
  /// std::invalid_argument if one cannot be read, is too short, or has a name that is not UTF-8 or
  /// not on one line.
  Corpus(const std::vector<std::string>& paths, Index context) : context_(context) {
    namespace fs = std::filesystem;
    std::vector<fs::path> files;
    for (const std::string& path : paths) {
      if (fs::is_directory(path)) {
        const auto first = static_cast<std::ptrdiff_t>(files.size());
        for (const auto& entry : fs::directory_iterator(path)) {
          if (entry.path().extension() == ".txt") {
            files.push_back(entry.path());
          }
        }
        std::sort(files.begin() + first, files.end());
      } else {
        files.emplace_back(path);
      }
    }
    for (const fs::path& file : files) {
      add(file);
    }
    if (sources_.empty()) {
      throw std::invalid_argument("no text, expected files or folders of *.txt");
    }
  }

  Index num_sources() const { return static_cast<Index>(sources_.size()); }
  const std::string& name(Index source) const { return at(source).name; }
  Index context() const { return context_; }
  /// The sources' names, and a checksum (FNV-1a) of their bytes and cuts.
  std::string description() const {
    std::string text;
    std::uint64_t sum = 14695981039346656037U;
    const auto count = [&](std::uint64_t value) { sum = (sum ^ value) * 1099511628211U; };
    for (const Source& source : sources_) {
      text += source.name + ' ';
      std::for_each(source.cut.begin(), source.cut.end(),
                    [&](Index cut) { count(static_cast<std::uint64_t>(cut)); });
    }
    std::for_each(bytes_.begin(), bytes_.end(), count);
    return text + std::to_string(sum);
  }
  Index num_bytes() const { return static_cast<Index>(bytes_.size()); }
  /// Places of a split.
  Index size(Split split) const {
    return std::accumulate(
        sources_.begin(), sources_.end(), Index{0},
        [&](Index sum, const Source& source) { return sum + places(source, split); });
  }

  /// n places of the training split, drawn by the seed and the number of the step alone.
  void draw(std::uint64_t seed, Index step, Index n, Batch& batch) const {
    std::seed_seq words{static_cast<std::uint32_t>(seed), static_cast<std::uint32_t>(step)};
    std::mt19937_64 random(words);
    const auto count = static_cast<std::uint64_t>(size(Split::train));
    resize(n, batch);
    for (Index row = 0; row < n; ++row) {
      copy(Split::train, static_cast<Index>(random() % count), row, batch);
    }
  }
  /// Places first, first + 1, ... of `all` that are spread evenly over a split, at most n; and the
  /// source of each.
  void spread(Split split, Index all, Index first, Index n, Batch& batch,
              std::vector<Index>& source) const {
    const double stride = static_cast<double>(size(split)) / static_cast<double>(all);
    n = (std::min)(n, all - first);
    resize(n, batch);
    source.resize(static_cast<std::size_t>(n));
    for (Index row = 0; row < n; ++row) {
      const Index place = static_cast<Index>(static_cast<double>(first + row) * stride);
      source[static_cast<std::size_t>(row)] = copy(split, place, row, batch);
    }
  }

 private:
  struct Source {
    std::string name;
    std::array<Index, 4> cut;  // the splits are between neighbours
  };

  const Source& at(Index source) const { return sources_[static_cast<std::size_t>(source)]; }
  Index places(const Source& source, Split split) const {
    const auto i = static_cast<std::size_t>(split);
    return source.cut[i + 1] - source.cut[i] - context_;
  }

  void add(const std::filesystem::path& path) {
    try {
      static_cast<void>(Json(path.stem().string()).dump());
    } catch (const Json::type_error&) {
      throw std::invalid_argument("the name of " + path.string() +
                                  " is not UTF-8, expected one that results in JSON can name");
    }
    if (path.stem().string().find_first_of("\r\n") != std::string::npos) {
      throw std::invalid_argument("the name of " + path.string() +
                                  " has several lines, expected one that a table can name");
    }
    std::ifstream file(path, std::ios::binary);
    const std::vector<std::uint8_t> text{std::istreambuf_iterator<char>(file), {}};
    if (!file.is_open() || file.bad()) {
      throw std::invalid_argument("cannot read " + path.string());
    }
    const Index begin = num_bytes(), length = static_cast<Index>(text.size());
    bytes_.insert(bytes_.end(), text.begin(), text.end());
    const auto share = [&](double part) {
      return static_cast<Index>(part * static_cast<double>(length));
    };
    // Behind the end of the line that has the last byte before `place`; at the place itself if that
    // line leaves no place to predict before the next cut.
    const auto line_end = [&](Index place, Index next) {
      for (Index i = (std::max)(place, Index{1}); i < next - context_; ++i) {
        if (text[static_cast<std::size_t>(i - 1)] == '\n') {
          return begin + i;
        }
      }
      return begin + place;
    };
    sources_.push_back({path.stem().string(),
                        {begin, line_end(share(0.9), share(0.95)), line_end(share(0.95), length),
                         begin + length}});
    for (const Split split : {Split::train, Split::validation, Split::test}) {
      if (places(sources_.back(), split) < 1) {
        throw std::invalid_argument(path.string() + " is too short, expected text with more than " +
                                    std::to_string(context_) + " bytes in its last twentieth");
      }
    }
  }

  void resize(Index n, Batch& batch) const {
    batch.context.resize(static_cast<std::size_t>(n * context_));
    batch.target.resize(static_cast<std::size_t>(n));
  }
  /// Returns the source.
  Index copy(Split split, Index place, Index row, Batch& batch) const {
    Index source = 0;
    while (place >= places(at(source), split)) {
      place -= places(at(source++), split);
    }
    const Index begin = at(source).cut[static_cast<std::size_t>(split)] + place;
    const auto from = bytes_.begin() + begin;
    std::copy_n(from, context_, batch.context.begin() + row * context_);
    batch.target[static_cast<std::size_t>(row)] = from[context_];
    return source;
  }

  Index context_;
  std::vector<std::uint8_t> bytes_;
  std::vector<Source> sources_;
};

}  // namespace byte_lm
