// compiles
// flags: -Wall -Wextra -Wpedantic -Wconversion -Wshadow -Werror
// -DMOE_COMPILED_ENTRY=moe_compiled_v3
//
// The sources of moe::compiled, whose objects are built without our warnings.
#include <moe/compiled/choice.cpp>
#include <moe/compiled/one_set.cpp>

int main() {}
