// SPDX-License-Identifier: Apache-2.0
// SafeTensors as users hold it: the sources of its bytes, its lifetime, and read_matrix().
#include "moe/io/safetensors.hpp"

#include <bit>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <limits>
#include <string>

#include "safetensors_bytes.hpp"

#if defined(__unix__) || defined(__APPLE__)
#include <sys/stat.h>
#include <unistd.h>
#endif

namespace moe::io::testing {
namespace {

namespace fs = std::filesystem;

/// A directory of the test's own, gone afterwards.
class SafeTensorsFile : public ::testing::Test {
 protected:
  void SetUp() override {
    const auto* const info = ::testing::UnitTest::GetInstance()->current_test_info();
    directory_ =
        fs::path(::testing::TempDir()) / joined("moe_safetensors_", info->name(), "_", unique());
    fs::create_directories(directory_);
  }
  void TearDown() override { fs::remove_all(directory_); }

  fs::path write(const std::string& name, const FileBytes& bytes) const {
    const fs::path path = directory_ / name;
    std::ofstream(path, std::ios::binary)
        .write(reinterpret_cast<const char*>(bytes.data()),
               static_cast<std::streamsize>(bytes.size()));
    return path;
  }

  void expect_refused_file(const fs::path& path, std::string_view fact) const {
    for (const auto open : {&SafeTensors::map, &SafeTensors::load}) {
      try {
        open(path, {});
        ADD_FAILURE() << path << " was accepted";
      } catch (const FormatError& error) {
        expect_message(error, path.string(), {fact});
      }
    }
  }

  fs::path directory_;

 private:
  static long unique() {
#if defined(__unix__) || defined(__APPLE__)
    return ::getpid();
#else
    return 0;
#endif
  }
};

// Two tensors and metadata; `padding` spaces move the data to any alignment.
FileBytes small_file(std::size_t padding = 0) {
  FileBytes data = bytes_of(std::vector<double>{1.5, -2.25});
  const FileBytes floats = bytes_of(std::vector<float>{1, 2, 3, 4, 5, 6});
  data.insert(data.end(), floats.begin(), floats.end());
  return file_of(R"({"__metadata__":{"format":"pt"},)"
                 R"("d":{"dtype":"F64","shape":[2],"data_offsets":[0,16]},)"
                 R"("f":{"dtype":"F32","shape":[2,3],"data_offsets":[16,40]}})" +
                     std::string(padding, ' '),
                 data);
}

/// One tensor "w".
template <class T>
SafeTensors tensor_file(std::string_view dtype, std::string_view shape,
                        const std::vector<T>& values) {
  const FileBytes data = bytes_of(values);
  return parse(
      file_of(header_of(joined("\"", dtype, "\""), shape, joined("[0,", data.size(), "]")), data));
}

void expect_refused_matrix(const auto& read, std::initializer_list<std::string_view> facts) {
  try {
    read();
    ADD_FAILURE() << "accepted, expected: " << *facts.begin();
  } catch (const FormatError& error) {
    expect_message(error, "bad.safetensors", facts);
  }
}

TEST_F(SafeTensorsFile, IsTheSameFromEverySource) {
  const FileBytes bytes = small_file();
  const fs::path path = write("model.safetensors", bytes);
  for (const SafeTensors& file :
       {SafeTensors::map(path), SafeTensors::load(path), SafeTensors::from_bytes(bytes)}) {
    ASSERT_EQ(file.tensors().size(), 2U);
    EXPECT_EQ(file.metadata().at("format"), "pt");
    EXPECT_EQ(file.at("f").dtype, DType::F32);
    EXPECT_EQ(file.at("f").shape, (std::vector<Index>{2, 3}));
    EXPECT_EQ(file.at("f").file_offset, bytes.size() - 24);
    EXPECT_EQ(std::memcmp(file.at("f").data.data(), bytes.data() + bytes.size() - 24, 24), 0);
    EXPECT_EQ(read_matrix<float>(file, "f", 2, 3)(1, 0), 4.0F);
    EXPECT_EQ(read_matrix<double>(file, "d", 1, 2)(0, 1), -2.25);
  }
  EXPECT_EQ(SafeTensors::load(path).file(), path.string());
  EXPECT_EQ(SafeTensors::from_bytes(bytes).file(), "<memory>");
}

TEST_F(SafeTensorsFile, NamesTheFileAndTheTensorThatIsNotThere) {
  const fs::path path = write("model.safetensors", small_file());
  const SafeTensors file = SafeTensors::map(path);
  try {
    file.at("gate.weight");
    FAIL();
  } catch (const FormatError& error) {
    expect_message(error, path.string(), {"tensor \"gate.weight\"", "no tensor of this name"});
    EXPECT_EQ(error.tensor(), "gate.weight");
  }
}

TEST_F(SafeTensorsFile, RefusesWhatIsNoFile) {
  expect_refused_file(directory_ / "missing.safetensors", "cannot open");
  expect_refused_file(directory_, "not a regular file");
  expect_refused_file(write("empty.safetensors", {}), "has 0 bytes, expected at least 8");
  expect_refused_file(write("short.safetensors", zeros(7)), "has 7 bytes");
  expect_refused_file(write("length.safetensors", file_of("{}", {}, 3)), "header length 3");
}

TEST_F(SafeTensorsFile, RefusesATruncatedFile) {
  FileBytes bytes = small_file();
  bytes.pop_back();
  expect_refused_file(write("model.safetensors", bytes), "ends after 39 bytes of data");
}

#if defined(__unix__) || defined(__APPLE__)
TEST_F(SafeTensorsFile, RefusesFifosAndDevicesWithoutWaiting) {
  const fs::path fifo = directory_ / "fifo";
  ASSERT_EQ(::mkfifo(fifo.c_str(), 0600), 0);
  expect_refused_file(fifo, "not a regular file");
  expect_refused_file("/dev/zero", "not a regular file");
  expect_refused_file("/dev/null", "not a regular file");
}

TEST_F(SafeTensorsFile, FollowsLinksButNotInCircles) {
  write("model.safetensors", small_file());
  fs::create_symlink("model.safetensors", directory_ / "link");
  EXPECT_NO_THROW(SafeTensors::map(directory_ / "link"));
  fs::create_symlink("circle", directory_ / "circle");
  expect_refused_file(directory_ / "circle", "cannot open");
}

TEST_F(SafeTensorsFile, LoadedBytesOutliveTheFile) {
  const fs::path path = write("model.safetensors", small_file());
  const SafeTensors loaded = SafeTensors::load(path);
  fs::resize_file(path, 8);
  EXPECT_EQ(read_matrix<float>(loaded, "f", 2, 3)(1, 2), 6.0F);
}

TEST_F(SafeTensorsFile, AHugeFileOfSomethingElseCostsNothing) {
  const fs::path path = write("model.safetensors", file_of("{}", {}, ~std::uint64_t{0}));
  fs::resize_file(path, std::uintmax_t{1} << 40);  // sparse
  expect_refused_file(path, "header length");
}
#endif

TEST_F(SafeTensorsFile, ReadsDataAtAnyAlignment) {
  for (std::size_t padding = 0; padding < 8; ++padding) {
    const fs::path path = write("model.safetensors", small_file(padding));
    const SafeTensors file = SafeTensors::map(path);
    EXPECT_EQ(read_matrix<double>(file, "d", 1, 2)(0, 0), 1.5);
    EXPECT_EQ(read_matrix<double>(file, "f", 2, 3)(0, 2), 3.0);
    EXPECT_EQ(read_matrix<float>(file, "f", 2, 3)(0, 2), 3.0F);
  }
}

TEST(SafeTensors, ViewsSurviveAMoveAndTheSourceIsEmpty) {
  static_assert(!std::is_copy_constructible_v<SafeTensors>);
  static_assert(std::is_nothrow_move_constructible_v<SafeTensors>);
  SafeTensors source = SafeTensors::from_bytes(small_file());
  const TensorView* const view = &source.at("f");
  const std::span<const std::byte> data = view->data;
  SafeTensors target = std::move(source);
  EXPECT_EQ(&target.at("f"), view);
  EXPECT_EQ(target.at("f").data.data(), data.data());
  // What is left is not unspecified here, but empty. NOLINTBEGIN(bugprone-use-after-move)
  EXPECT_TRUE(source.tensors().empty());
  EXPECT_TRUE(source.metadata().empty());
  EXPECT_FALSE(source.contains("f"));
  EXPECT_THROW(source.at("f"), FormatError);
  source = std::move(target);
  EXPECT_EQ(read_matrix<float>(source, "f", 2, 3)(1, 2), 6.0F);
  EXPECT_FALSE(target.contains("f"));
  // NOLINTEND(bugprone-use-after-move)
}

TEST(ReadMatrix, KeepsTheBitsOfItsOwnType) {
  const std::vector<std::uint32_t> bits{0x7FC00001, 0x7F800001, 0xFF800000, 0x80000000,
                                        0x00000001, 0x3F800000, 0x7F7FFFFF, 0x00000000};
  const SafeTensors file = tensor_file("F32", "[2,4]", bits);
  const Matrix<float> matrix = read_matrix<float>(file, "w", 2, 4);
  EXPECT_EQ(std::memcmp(matrix.data(), bits.data(), sizeof(std::uint32_t) * bits.size()), 0);
}

TEST(ReadMatrix, WidensExactly) {
  // 1, -2, largest, smallest subnormal, +Inf
  const std::vector<std::uint16_t> half{0x3C00, 0xC000, 0x7BFF, 0x0001, 0x7C00};
  const SafeTensors f16 = tensor_file("F16", "[5]", half);
  const Matrix<float> a = read_matrix<float>(f16, "w", 1, 5);
  EXPECT_EQ(a(0, 0), 1.0F);
  EXPECT_EQ(a(0, 1), -2.0F);
  EXPECT_EQ(a(0, 2), 65504.0F);
  EXPECT_EQ(a(0, 3), std::ldexp(1.0F, -24));
  EXPECT_EQ(a(0, 4), std::numeric_limits<float>::infinity());

  // 1, -2, pi rounded, smallest subnormal, -Inf
  const std::vector<std::uint16_t> brain{0x3F80, 0xC000, 0x4049, 0x0001, 0xFF80};
  const SafeTensors bf16 = tensor_file("BF16", "[5,1]", brain);
  const Matrix<double> b = read_matrix<double>(bf16, "w", 5, 1);
  EXPECT_EQ(b(0, 0), 1.0);
  EXPECT_EQ(b(1, 0), -2.0);
  EXPECT_EQ(b(2, 0), 3.140625);
  EXPECT_EQ(b(3, 0), std::ldexp(1.0, -133));
  EXPECT_EQ(b(4, 0), -std::numeric_limits<double>::infinity());

  const SafeTensors f32 = tensor_file("F32", "[]", std::vector<float>{0.1F});
  EXPECT_EQ(read_matrix<double>(f32, "w", 1, 1)(0, 0), static_cast<double>(0.1F));
}

TEST(ReadMatrix, RoundsToNearestWhereTheTypeIsNarrower) {
  const SafeTensors f64 =
      tensor_file("F64", "[3]", std::vector<double>{0.1, 1.0 + std::ldexp(1.0, -24), -1e300});
  const Matrix<float> a = read_matrix<float>(f64, "w", 1, 3);
  EXPECT_EQ(a(0, 0), 0.1F);
  EXPECT_EQ(a(0, 1), 1.0F);  // a tie goes to even
  EXPECT_EQ(a(0, 2), -std::numeric_limits<float>::infinity());

  const SafeTensors f32 =
      tensor_file("F32", "[2]",
                  std::vector<float>{1.0F + std::ldexp(1.0F, -8), 1.0F + 3 * std::ldexp(1.0F, -8)});
  const auto b = read_matrix<Eigen::bfloat16>(f32, "w", 1, 2);
  EXPECT_EQ(static_cast<float>(b(0, 0)), 1.0F);
  EXPECT_EQ(static_cast<float>(b(0, 1)), 1.0F + std::ldexp(1.0F, -6));
}

TEST(ReadMatrix, PassesNanAndInf) {
  const double nan = std::numeric_limits<double>::quiet_NaN();
  const double inf = std::numeric_limits<double>::infinity();
  const SafeTensors f64 = tensor_file("F64", "[3]", std::vector<double>{nan, inf, -inf});
  const Matrix<float> a = read_matrix<float>(f64, "w", 1, 3);
  EXPECT_TRUE(std::isnan(a(0, 0)));
  EXPECT_EQ(a(0, 1), std::numeric_limits<float>::infinity());
  EXPECT_EQ(a(0, 2), -std::numeric_limits<float>::infinity());
  for (const auto& [dtype, bits] : {std::pair{"F16", 0x7E00}, std::pair{"BF16", 0x7FC0}}) {
    const SafeTensors file =
        tensor_file(dtype, "[]", std::vector<std::uint16_t>{static_cast<std::uint16_t>(bits)});
    EXPECT_TRUE(std::isnan(read_matrix<float>(file, "w", 1, 1)(0, 0))) << dtype;
    EXPECT_TRUE(std::isnan(read_matrix<double>(file, "w", 1, 1)(0, 0))) << dtype;
  }
}

TEST(ReadMatrix, KeepsTheBitsOfSixteenBitFloats) {
  const std::vector<std::uint16_t> bits{0x0001, 0x7F81, 0xFFFF, 0x8000};
  const SafeTensors bf16 = tensor_file("BF16", "[4]", bits);
  const auto matrix = read_matrix<Eigen::bfloat16>(bf16, "w", 1, 4);
  EXPECT_EQ(std::memcmp(matrix.data(), bits.data(), 8), 0);
  const SafeTensors f64 = tensor_file("F64", "[1]", std::vector<double>{1});
  expect_refused_matrix([&] { read_matrix<Eigen::half>(f64, "w", 1, 1); },
                        {"dtype F64 cannot be read as floats of 16 bits"});
}

TEST(ReadMatrix, ReadsIntegersAndRefusesThoseThatDoNotFit) {
  const SafeTensors i64 = tensor_file("I64", "[2,2]", std::vector<std::int64_t>{-1, 0, 7, 1 << 20});
  EXPECT_EQ(read_matrix<std::int64_t>(i64, "w", 2, 2)(0, 0), -1);
  EXPECT_EQ(read_matrix<std::int32_t>(i64, "w", 2, 2)(1, 1), 1 << 20);
  EXPECT_EQ(read_matrix<double>(i64, "w", 2, 2)(1, 0), 7.0);
  const std::string last = std::to_string(i64.at("w").file_offset + 24);
  expect_refused_matrix(
      [&] { read_matrix<std::int16_t>(i64, "w", 2, 2); },
      {"tensor \"w\"", joined("byte ", last), "does not fit an integer of 16 bits"});
  expect_refused_matrix([&] { read_matrix<std::uint64_t>(i64, "w", 2, 2); }, {"does not fit"});
  const SafeTensors u8 = tensor_file("U8", "[2]", std::vector<std::uint8_t>{0, 255});
  EXPECT_EQ(read_matrix<float>(u8, "w", 1, 2)(0, 1), 255.0F);
  const SafeTensors f32 = tensor_file("F32", "[1]", std::vector<float>{1});
  expect_refused_matrix([&] { read_matrix<std::int32_t>(f32, "w", 1, 1); },
                        {"tensor \"w\"", "dtype F32 cannot be read as integers of 32 bits"});
}

TEST(ReadMatrix, RefusesDtypesWithoutAConversion) {
  for (const std::string_view dtype : {"BOOL", "F8_E4M3", "F8_E5M2", "F8_E8M0"}) {
    const SafeTensors file = tensor_file(dtype, "[1]", std::vector<std::uint8_t>{1});
    expect_refused_matrix([&] { read_matrix<float>(file, "w", 1, 1); },
                          {joined("dtype ", dtype), "floats of 32 bits"});
  }
}

TEST(ReadMatrix, TakesLeadingDimensionsTogetherAsRows) {
  std::vector<float> values(24);
  for (std::size_t i = 0; i < values.size(); ++i) {
    values[i] = static_cast<float>(i);
  }
  const SafeTensors file = tensor_file("F32", "[2,3,4]", values);
  const Matrix<float> matrix = read_matrix<float>(file, "w", 6, 4);
  EXPECT_EQ(matrix(5, 1), 21.0F);
  for (const auto& shape : std::vector<std::pair<Index, Index>>{
           {4, 6}, {2, 12}, {24, 1}, {1, 24}, {6, 5}, {-6, -4}, {0, 4}}) {
    expect_refused_matrix([&] { read_matrix<float>(file, "w", shape.first, shape.second); },
                          {"tensor \"w\"", "F32 [2, 3, 4], expected a matrix of"});
  }
}

TEST(ReadMatrix, TakesAVectorAsOneRowOnly) {
  const SafeTensors file = tensor_file("F32", "[3]", std::vector<float>{1, 2, 3});
  EXPECT_EQ(read_matrix<float>(file, "w", 1, 3)(0, 2), 3.0F);
  expect_refused_matrix([&] { read_matrix<float>(file, "w", 3, 1); },
                        {"F32 [3], expected a matrix of (3, 1)"});
}

TEST(ReadMatrix, ReadsEmptyTensors) {
  const SafeTensors file = tensor_file("F32", "[1099511627776,0]", std::vector<float>{});
  const Matrix<double> matrix = read_matrix<double>(file, "w", Index{1} << 40, 0);
  EXPECT_EQ(matrix.size(), 0);
  const SafeTensors rows = tensor_file("F32", "[0,5]", std::vector<float>{});
  EXPECT_EQ(read_matrix<float>(rows, "w", 0, 5).cols(), 5);
}

}  // namespace
}  // namespace moe::io::testing
