#!/bin/sh
# Runs every fuzz target for so many seconds, all at a time:
#   cmake --preset fuzz && cmake --build --preset fuzz && sh tests/fuzz/run.sh 1800
# What a run learns stays in build/fuzz/corpus; the bytes of a finding go to build/fuzz/found, and
# `build/fuzz/tests/fuzz/fuzz_<name> <file>` shows it again.
set -eu
cd "$(dirname "$0")/../.."
seconds=${1:-60}
programs=build/fuzz/tests/fuzz
mkdir -p build/fuzz/found build/fuzz/log
# In memory where there is such a folder: the targets write files, and bring them to the disk.
scratch=$(mktemp -d -p /dev/shm 2>/dev/null || mktemp -d)
trap 'rm -rf "$scratch"' EXIT

run_one='
  mkdir -p "build/fuzz/corpus/$1"
  "$2/fuzz_$1" -max_total_time="$3" -max_len=4096 -rss_limit_mb=2048 -timeout=60 \
    -dict=tests/fuzz/json.dict -artifact_prefix="build/fuzz/found/$1-" -print_final_stats=1 \
    "build/fuzz/corpus/$1" "$2/seeds/$1" >"build/fuzz/log/$1" 2>&1 || touch "$TMPDIR/failed"
  tail -n 40 "build/fuzz/log/$1" | sed "s/^/$1: /"'
printf '%s\n' safetensors index config gguf |
  TMPDIR=$scratch xargs -P 4 -I '{}' sh -c "$run_one" run_one '{}' "$programs" "$seconds"
if [ -e "$scratch/failed" ]; then
  echo "tests/fuzz/run.sh: a finding, see build/fuzz/found" >&2
  exit 1
fi
