#!/bin/sh
# One command from a bare machine to tested: installs what is missing, configures, builds, runs
# every test in build/release. Arguments go to ctest, for example: sh tests/run.sh -R router
set -eu
cd "$(dirname "$0")/.."
. cmake/bootstrap.sh

moe_bootstrap cmake ninja c++ eigen nlohmann gtest cli11
moe_run cmake --preset release -D MOE_BUILD_TESTS=ON -D MOE_BUILD_BENCH=OFF
moe_run cmake --build --preset release
moe_run ctest --preset release "$@"
