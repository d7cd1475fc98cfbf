#!/bin/sh
# What moe costs a translation unit: the seconds to compile a forward of the library moe::compiled
# and of the headers, and the whole of the class, beside Eigen alone. The least of three each. CXX
# and CXXFLAGS as usual.
set -eu
cd "$(dirname "$0")/.."
: "${CXX:=c++}" "${CXXFLAGS:=-O3 -march=native -fopenmp}"
eigen=$(pkg-config --cflags eigen3 2>/dev/null || echo -I/usr/include/eigen3)
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

cat >"$folder/eigen.cpp" <<'END'
#include <Eigen/Core>
Eigen::MatrixXf product(const Eigen::MatrixXf& a, const Eigen::MatrixXf& b) { return a * b; }
END
cat >"$folder/compiled.cpp" <<'END'
#include <moe/compiled.hpp>
void forward(const moe::compiled::MoELayer<float>& layer,
             moe::compiled::MoELayer<float>::Scratch& scratch, const moe::Matrix<float>& x,
             moe::Matrix<float>& y) {
  layer.forward(x, y, scratch);
}
END
cat >"$folder/forward.cpp" <<'END'
#include <moe/moe.hpp>
void forward(const moe::MoELayer<float>& layer, moe::MoELayer<float>::Scratch& scratch,
             const moe::Matrix<float>& x, moe::Matrix<float>& y) {
  layer.forward(x, y, scratch);
}
END
cat >"$folder/class.cpp" <<'END'
#include <moe/moe.hpp>
template class moe::MoELayer<float>;
END

for unit in eigen compiled forward class; do
  least=''
  for _ in 1 2 3; do
    begin=$(date +%s%N)
    # shellcheck disable=SC2086 # flags are words
    $CXX -std=c++20 $CXXFLAGS $eigen -Iinclude -c "$folder/$unit.cpp" -o "$folder/$unit.o"
    took=$((($(date +%s%N) - begin) / 10000000))
    if [ -z "$least" ] || [ "$took" -lt "$least" ]; then least=$took; fi
  done
  echo "$unit $least" | awk '{ printf "%-8s %5.2f s\n", $1, $2 / 100 }'
done
