#!/bin/sh
# One command from a bare machine to the report: installs what is missing, builds in build/release,
# measures, and writes build/release/report/index.html. Arguments go to the report program.
set -eu
cd "$(dirname "$0")/.."
. cmake/bootstrap.sh

moe_bootstrap cmake ninja c++ eigen nlohmann gtest cli11 benchmark gnuplot
moe_run cmake --preset release -D MOE_BUILD_BENCH=ON
moe_run cmake --build --preset release --target moe_report
peers=build/release/bench/peers/moe_peers
if [ -x "$peers" ]; then # a whole build was made; OPENBLAS_* in the environment can slow OpenBLAS
  moe_run cmake --build --preset release --target moe_peers
  moe_run mkdir -p build/release/report
  moe_run env -u OPENBLAS_CORETYPE -u OPENBLAS_L2_SIZE "$peers" --json build/release/report/peers.json
fi
moe_run build/release/bench/moe_report --out build/release/report "$@"
echo "The report is in $(pwd)/build/release/report/index.html"
