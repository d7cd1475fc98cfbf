// SPDX-License-Identifier: Apache-2.0
// Files of packed experts: the resident bits come back, and what is not as it was written is
// refused with the byte.
#include "moe/io/packed_file.hpp"

#include "model_folder.hpp"
#include "moe/io/open_packed.hpp"
#include "moe/io/save_packed.hpp"
#include "moe/layers/packed_layer.hpp"
#include "support/count_allocations.hpp"
#include "support/shelf.hpp"
#include "support/storages.hpp"
#include "support/throws.hpp"

namespace moe::io::testing::packed_file_test {
namespace {

using io::detail::checksum;
using io::detail::PackedHeader;
using moe::testing::make_layer;
using moe::testing::message_of;
using moe::testing::offloaded_config;
using moe::testing::random_matrix;
using moe::testing::same_bits;

using Words = PackedHeader::Words;

FileBytes content(const fs::path& path) {
  const auto bytes = io::detail::InputFile(path).load();
  return {bytes.view.begin(), bytes.view.end()};
}

/// A number of the header or the table.
std::uint64_t number_at(const FileBytes& file, std::size_t word) {
  std::uint64_t number = 0;
  std::memcpy(&number, file.data() + word * sizeof(number), sizeof(number));
  return number;
}
void set_number(FileBytes& file, std::size_t word, std::uint64_t number) {
  std::memcpy(file.data() + word * sizeof(number), &number, sizeof(number));
}
/// With the checksums that table and header have now.
void seal(FileBytes& file) {
  const std::span<const std::byte> bytes(file);
  set_number(file, PackedHeader::table_checksum, checksum(bytes.subspan(4096, 4096)));
  set_number(file, PackedHeader::own_checksum, 0);
  set_number(file, PackedHeader::own_checksum, checksum(bytes.first(4096)));
}

class PackedFileIn : public ModelFolder {
 protected:
  template <class S>
  static PackedLayer<S> packed() {
    return pack<S>(make_layer<float>(offloaded_config(), 7));
  }
  fs::path saved() const {
    fs::path path = folder() / "experts.moe";
    save_packed(path, packed<q8>().experts());
    return path;
  }
  template <class Layer>
  static Matrix<float> forward(const Layer& layer) {
    const Matrix<float> x = random_matrix<float>(50, layer.d_in(), 3);
    Matrix<float> y(50, layer.d_out());
    typename Layer::Scratch scratch;
    layer.forward(x, y, scratch);
    return y;
  }
};

template <class S>
class PackedFileOf : public PackedFileIn {};
TYPED_TEST_SUITE(PackedFileOf, moe::testing::FileStorages);

TYPED_TEST(PackedFileOf, GivesTheBitsOfWhatWasSaved) {
  using S = TypeParam;
  const auto layer = this->template packed<S>();
  const fs::path path = this->folder() / "experts.moe";
  save_packed(path, layer.experts());
  const Matrix<float> want = this->forward(layer);
  for (Index slots = 1; slots <= 7; ++slots) {
    const auto cached = offload(layer, open_cached<S>(path, {.slots = slots}));
    EXPECT_TRUE(same_bits(this->forward(cached), want)) << slots;
    EXPECT_TRUE(same_bits(this->forward(cached), want)) << slots;
  }
  const auto resident = offload(layer, open_resident<S>(path));
  const std::uint64_t bytes = resident.experts().counts().bytes;
  EXPECT_TRUE(same_bits(this->forward(resident), want));
  EXPECT_EQ(resident.experts().counts().bytes, bytes) << "all are in memory";
  EXPECT_TRUE(same_bits(this->forward(offload(layer, open_mapped<S>(path))), want));
}

TEST_F(PackedFileIn, HasOneExtentOfWholePagesForEachExpert) {
  const FileBytes file = content(saved());
  const std::uint64_t extent = number_at(file, PackedHeader::extent_bytes);
  EXPECT_EQ(extent % 4096, 0U);
  EXPECT_EQ(file.size(), 2 * 4096 + 7 * extent);
  for (std::size_t e = 0; e < 7; ++e) {
    EXPECT_EQ(number_at(file, 512 + 3 * e), 2 * 4096 + e * extent);
    EXPECT_EQ(number_at(file, 513 + 3 * e), extent);
  }
}

TEST_F(PackedFileIn, IsTheSameBytesOnEveryInstructionSet) {
  const auto file_of = [&]<class S>(S) {
    std::vector<Expert<float>> experts;
    for (const int number : {1, 2}) {
      const ExpertConfig config{.bias = true};
      Expert<float> expert({33, 65, 17}, config, 1);
      ExpertParams<float>::for_each(
          [&](std::string_view, Matrix<float>& tensor) {
            for (Index i = 0; i < tensor.size(); ++i) {
              tensor.data()[i] = static_cast<float>(i * number % 13 - 6) / 8;
            }
          },
          expert.params());
      experts.push_back(std::move(expert));
    }
    const fs::path path = folder() / "experts.moe";
    save_packed(path, PackedExperts<S>(FfnExperts<float>(std::move(experts))));
    return checksum(content(path));
  };
  EXPECT_EQ(file_of(q8{}), 0x7FBE7486EB7540D8U);
  EXPECT_EQ(file_of(q4{}), 0xA6685FC8D1CBEF8FU);
  EXPECT_EQ(file_of(q4_k{}), 0x739C85AFA34711B0U);
  EXPECT_EQ(file_of(mxfp4{}), 0x8BC748B7EA76C152U);
  EXPECT_EQ(file_of(fp8{}), 0x53BC9AF2DDD3F284U);
}

TEST_F(PackedFileIn, RefusesAFlippedBitInEveryByteOfHeaderAndTable) {
  FileBytes file = content(saved());
  const fs::path path = folder() / "bad";
  for (std::size_t at = 0; at < 2 * 4096; ++at) {
    file[at] ^= std::byte{0x10};
    if (at % 7 == 0 || at % 4096 < 200) {
      write("bad", file);
      EXPECT_THROW(open_mapped<q8>(path), FormatError) << at;
    }
    file[at] ^= std::byte{0x10};
  }
}

TEST_F(PackedFileIn, RefusesAFlippedBitInAnExtentWhenItIsRead) {
  const auto layer = packed<q8>();
  const FileBytes good = content(saved());
  const Matrix<float> want = forward(layer);
  const std::uint64_t extent = number_at(good, PackedHeader::extent_bytes);
  for (std::size_t e = 0; e < 7; ++e) {
    for (const std::uint64_t at : {std::uint64_t{0}, extent / 2, extent - 1}) {
      FileBytes file = good;
      file[2 * 4096 + e * extent + at] ^= std::byte{0x10};
      const fs::path path = write("bad", file);
      const auto offloaded = offload(layer, open_cached<q8>(path, {.slots = 3}));
      expect_fault([&] { forward(offloaded); }, path, "",
                   {joined("byte ", 2 * 4096 + e * extent), "checksum",
                    joined("of expert ", e, ", expected ", number_at(good, 514 + 3 * e))});
      expect_fault([&] { open_resident<q8>(path); }, path, "", {joined("of expert ", e)});
    }
  }
}

TEST_F(PackedFileIn, RefusesAFileThatChangesWhileItIsOpenAndTakesItWhenItIsBack) {
  const auto layer = packed<q8>();
  const fs::path path = saved();
  const FileBytes good = content(path);
  const Matrix<float> want = forward(layer);
  const auto offloaded = offload(layer, open_cached<q8>(path, {.slots = 2}));
  const auto overwrite = [&](const FileBytes& bytes) { write("experts.moe", bytes); };
  EXPECT_TRUE(same_bits(forward(offloaded), want));
  FileBytes changed = good;
  std::fill(changed.begin() + 2 * 4096, changed.end(), std::byte{1});
  overwrite(changed);
  expect_fault([&] { forward(offloaded); }, path, "", {"checksum"});
  overwrite(FileBytes(good.begin(), good.begin() + 3 * 4096));
  expect_fault([&] { forward(offloaded); }, path, "", {"end of file", "the file shrank"});
  overwrite(good);
  EXPECT_TRUE(same_bits(forward(offloaded), want));
}

TEST_F(PackedFileIn, RefusesAnyOtherLength) {
  const FileBytes good = content(saved());
  for (const std::size_t size :
       {std::size_t{0}, std::size_t{1}, std::size_t{4095}, std::size_t{4096}, std::size_t{8192},
        good.size() - 4096, good.size() - 1, good.size() + 1, good.size() + 4096}) {
    FileBytes file = good;
    file.resize(size);
    const fs::path path = write("bad", file);
    expect_fault([&] { open_cached<q8>(path, {}); }, path, "",
                 {joined("byte ", size), "end of file, expected"});
  }
}

TEST_F(PackedFileIn, SaysWhichFieldIsWrongAndWhatItExpects) {
  const FileBytes good = content(saved());
  const auto bits = [](double number) { return std::bit_cast<std::uint64_t>(number); };
  struct Fault {
    std::size_t word;
    std::uint64_t number;
    std::string fact;
  };
  const std::uint64_t extent = number_at(good, PackedHeader::extent_bytes);
  const Fault faults[] = {
      {PackedHeader::magic, 5, "magic number 5, expected"},
      {PackedHeader::version, 2, "version 2, expected 1"},
      {PackedHeader::storage, 0x3471, "storage \"q4\", expected \"q8\""},
      {PackedHeader::num_experts, 0, "0 experts, expected 1 to 2147483647"},
      {PackedHeader::num_experts, 1ULL << 40, "1099511627776 experts, expected 1 to"},
      {PackedHeader::d_in, 0, "0 as d_in, expected 1 to 16777216"},
      {PackedHeader::d_ff, ~0ULL, "18446744073709551615 as d_ff, expected 1 to 16777216"},
      {PackedHeader::d_out, 0, "0 as d_out, expected 1 to 16777216"},
      {PackedHeader::activation, 7, "7 as the activation, expected 0 to 6"},
      {PackedHeader::gated, 2, "2 as gated, expected 0 to 1"},
      {PackedHeader::bias, 2, "2 as bias, expected 0 to 1"},
      {PackedHeader::output_gate, 2, "2 as output_gate, expected 0 to 1"},
      {PackedHeader::has_limit, 2, "2 as has_limit, expected 0 to 1"},
      {PackedHeader::clamp, 2, "2 as the clamp, expected 0 to 1"},
      {PackedHeader::limit, bits(-1.0), "-1 as the limit, expected finite and above 0"},
      {PackedHeader::up_offset, bits(std::nan("")), "nan as up_offset, expected finite"},
      {PackedHeader::alpha, bits(0.0), "0 as alpha, expected finite and above 0"},
      {PackedHeader::gate_bound, bits(HUGE_VAL), "inf as gate_bound, expected finite"},
      {PackedHeader::up_bound, bits(-2.5), "-2.5 as up_bound, expected finite and above 0"},
      {PackedHeader::extent_bytes, 4096, joined("bytes of an extent 4096, expected ", extent)},
      {PackedHeader::first_unused, 1, "unused number 1, expected 0"},
      {512, 0, "offset 0, expected 8192"},
      {512 + 4, 7, joined("bytes 7, expected ", extent)},
      {512 + 21, 9, "unused byte 9, expected 0"}};
  for (const Fault& fault : faults) {
    FileBytes file = good;
    set_number(file, fault.word, fault.number);
    seal(file);
    const fs::path path = write("bad", file);
    expect_fault([&] { open_mapped<q8>(path); }, path, "",
                 {joined("byte ", fault.word * 8, ": "), fault.fact});
  }
}

TEST_F(PackedFileIn, RefusesNumbersThatDoNotGoTogether) {
  FileBytes file = content(saved());
  set_number(file, PackedHeader::gated, 0);
  seal(file);
  const fs::path path = write("bad", file);
  expect_fault([&] { open_mapped<q8>(path); }, path, "", {"without a gate, expected gated"});
}

TEST_F(PackedFileIn, RefusesWhatIsNoFileOfExperts) {
  const fs::path missing = folder() / "missing";
  expect_fault([&] { open_cached<q8>(missing, {}); }, missing, "", {"cannot open"});
  expect_fault([&] { open_cached<q8>(folder(), {}); }, folder(), "", {"not a regular file"});
  const fs::path text = write("text", std::string(10000, 'x'));
  expect_fault([&] { open_cached<q8>(text, {}); }, text, "", {"magic number"});
}

TEST_F(PackedFileIn, IsNotWrittenOfExpertsOfSeveralKinds) {
  std::vector<PackedExpert<q8>> experts;
  for (const Index d_ff : {5, 6}) {
    experts.emplace_back(Expert<float>({7, d_ff, 7}, ExpertConfig{}, 1));
  }
  const fs::path path = write("old", "old");
  EXPECT_EQ(message_of([&] { save_packed(path, PackedExperts<q8>(std::move(experts))); }),
            "save_packed: expert 1 is of another kind or size than the first, expected the same");
  EXPECT_EQ(content(path).size(), 3U);
}

TEST_F(PackedFileIn, IsNotWrittenOfMoreExpertsThanHaveANumber) {
  const PackedExpert<q8> expert(Expert<float>({5, 6, 7}, ExpertConfig{}, 1));
  const fs::path path = write("old", "old");
  for (const Index experts : {Index{-1}, Index{0}, Index{1} << 31, Index{1} << 62}) {
    const auto save = [&] {
      save_packed<q8>(path, experts, [&](Index) -> const PackedExpert<q8>& { return expert; });
    };
    EXPECT_EQ(message_of(save), "save_packed: num_experts = " + std::to_string(experts) +
                                    ", expected 1 to 2147483647");
  }
  EXPECT_EQ(content(path).size(), 3U);
}

TEST_F(PackedFileIn, OfManyExpertsHasATableOfSeveralPages) {
  const PackedExpert<q4> expert(Expert<float>({5, 6, 7}, ExpertConfig{}, 1));
  const fs::path path = folder() / "experts.moe";
  save_packed<q4>(path, 300, [&](Index) -> const PackedExpert<q4>& { return expert; });
  EXPECT_EQ(open_cached<q4>(path, {.slots = 2, .pinned = {299}}).num_experts(), 300);
  EXPECT_EQ(fs::file_size(path), 4096 + 2 * 4096 + 300 * ExpertExtent<q4>::of(expert).bytes());
}

#if MOE_COUNTS_ALLOCATIONS
TEST_F(PackedFileIn, IsReadWithoutAnAllocationInSteadyState) {
  const auto layer = offload(packed<q8>(), open_cached<q8>(saved(), {.slots = 2}));
  const Matrix<float> x = random_matrix<float>(50, layer.d_in(), 3);
  Matrix<float> y(50, layer.d_out());
  std::remove_cvref_t<decltype(layer)>::Scratch scratch;
  layer.forward(x, y, scratch, {.num_threads = 2});
  const std::uint64_t before = layer.experts().counts().bytes;
  EXPECT_EQ(
      moe::testing::count_allocations([&] { layer.forward(x, y, scratch, {.num_threads = 2}); }),
      0);
  EXPECT_GT(layer.experts().counts().bytes, before);
}
#endif

}  // namespace
}  // namespace moe::io::testing::packed_file_test
