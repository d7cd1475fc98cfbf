// SPDX-License-Identifier: Apache-2.0
// Files to parameters. It takes nlohmann-json, and is the target moe::io.
#pragma once

#include "io/byte_source.hpp"
#include "io/dtype.hpp"
#include "io/elements.hpp"
#include "io/families.hpp"
#include "io/family.hpp"
#include "io/format_error.hpp"
#include "io/header.hpp"
#include "io/header_check.hpp"
#include "io/header_json.hpp"
#include "io/json_facts.hpp"
#include "io/json_text.hpp"
#include "io/layouts.hpp"
#include "io/model_config.hpp"
#include "io/safetensors.hpp"
#include "io/system_file.hpp"
#include "io/tensor_files.hpp"
