#!/bin/sh
# One command from a bare machine to the report: installs what is missing, builds in build/release,
# measures, and writes index.html and more, into build/release/report unless another folder is named.
set -eu
usage='usage: sh bench/run.sh [--out FOLDER] [--threads N] [--quick]'
out='' threads=0 quick=''
while [ $# -gt 0 ]; do
  case $1 in
    --out) out=${2:?$usage} && shift ;;
    --threads) threads=${2:?$usage} && shift ;;
    --quick) quick=--quick && export MOE_BENCH_SMOKE=1 ;; # moe_peers has no such option
    *) echo "$usage" >&2 && exit 2 ;;
  esac
  shift
done
case $out in '' | /*) ;; *) out=$PWD/$out ;; esac
cd "$(dirname "$0")/.."
out=${out:-$PWD/build/release/report}
. cmake/bootstrap.sh

moe_bootstrap cmake ninja c++ eigen nlohmann gtest cli11 benchmark gnuplot
moe_run cmake --preset release -D MOE_BUILD_BENCH=ON
moe_run cmake --build --preset release --target moe_report
peers=build/release/bench/peers/moe_peers
if [ -x "$peers" ]; then # a whole build was made; OPENBLAS_* in the environment can slow OpenBLAS
  moe_run cmake --build --preset release --target moe_peers
  moe_run mkdir -p "$out"
  moe_run env -u OPENBLAS_CORETYPE -u OPENBLAS_L2_SIZE \
    "$peers" --threads "$threads" --json "$out/peers.json"
fi
moe_run build/release/bench/moe_report --out "$out" --threads "$threads" $quick
echo "The report is in $out/index.html"
