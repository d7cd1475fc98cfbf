// expect: moe needs IEEE arithmetic
// flags: -ffinite-math-only
#include <moe/losses.hpp>
