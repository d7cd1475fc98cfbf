// expect: moe needs IEEE arithmetic
// flags: -O1 -fno-math-errno -ffinite-math-only
#include <moe/losses.hpp>
