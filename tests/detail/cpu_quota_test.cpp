// SPDX-License-Identifier: Apache-2.0
// Tests of what a cgroup's files say, as text, and of what becomes of it.
#include "moe/detail/cpu_quota.hpp"

#include <gtest/gtest.h>

namespace moe::detail::cpu_quota_test {
namespace {

TEST(CpuQuota, OfCgroupV2IsRoundedUpToWholeCpus) {
  EXPECT_EQ(cpus_of_cpu_max("150000 100000\n"), 2);
  EXPECT_EQ(cpus_of_cpu_max("200000 100000\n"), 2);
  EXPECT_EQ(cpus_of_cpu_max("200001 100000"), 3);
  EXPECT_EQ(cpus_of_cpu_max("1000 100000"), 1);
  EXPECT_EQ(cpus_of_cpu_max("50000 50000"), 1);
  EXPECT_EQ(cpus_of_cpu_max("9223372036854775807 1"), std::numeric_limits<int>::max());
}

TEST(CpuQuota, IsReadWhateverWhiteSpaceThereIs) {
  for (const char* text : {"150000\t100000\n", "\t150000 \t 100000\t\n", "150000\n100000",
                           "\r\n150000\r\n100000\r\n", "  150000   100000  "}) {
    EXPECT_EQ(cpus_of_cpu_max(text), 2) << text;
  }
  EXPECT_EQ(cpus_of_cfs("\t150000", "\n100000"), 2);
  EXPECT_EQ(cpus_of_cpu_max("max\t100000\n"), 0);
  EXPECT_EQ(cpus_of_cpu_max("\t\n"), 0);
}

TEST(CpuQuota, OfCgroupV1IsRoundedUpToWholeCpus) {
  EXPECT_EQ(cpus_of_cfs("150000\n", "100000\n"), 2);
  EXPECT_EQ(cpus_of_cfs("1\n", "100000\n"), 1);
}

TEST(CpuQuota, IsNoneWhereTheFilesSayMaxNothingOrGarbage) {
  for (const char* text : {"max 100000\n", "max", "", "\n", " ", "150000", "150000 ", "-1 100000",
                           "0 100000", "150000 0", "150000 -5", "cpu.max", "0x10 100000", "1e5 10",
                           "99999999999999999999 100000", "150000 max"}) {
    EXPECT_EQ(cpus_of_cpu_max(text), 0) << text;
  }
  for (const char* text : {"-1\n", "", "0", "max", "garbage"}) {
    EXPECT_EQ(cpus_of_cfs(text, "100000\n"), 0) << text;
    EXPECT_EQ(cpus_of_cfs("100000\n", text), 0) << text;
  }
}

TEST(CpuQuota, LimitsTheDefaultThreadsUnlessTheUserHasSaidHowMany) {
  EXPECT_EQ(default_threads(64, 2, nullptr), 2);
  EXPECT_EQ(default_threads(4, 16, nullptr), 4) << "never more than OpenMP would take";
  EXPECT_EQ(default_threads(64, 0, nullptr), 64) << "no quota";
  EXPECT_EQ(default_threads(8, 2, "8"), 8);
}

TEST(CpuQuota, OfThisProcessIsReadWithoutHarm) { EXPECT_GE(read_cpu_quota(), 0); }

}  // namespace
}  // namespace moe::detail::cpu_quota_test
