// The component moe::io must bring its headers and those of nlohmann-json.
#include <moe/io/safetensors.hpp>
