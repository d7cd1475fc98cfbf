// expect: moe needs IEEE arithmetic
// flags: -ffast-math
#include <moe/moe.hpp>
