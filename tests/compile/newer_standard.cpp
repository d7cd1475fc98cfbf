// compiles
// flags: -std=c++2b -Wall -Wextra -Wpedantic -Werror
//
// The library and what it calls, as C++23.
#include "strict_warnings.cpp"

static_assert(__cplusplus > 202002L);
