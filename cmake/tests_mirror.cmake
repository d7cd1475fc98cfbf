# Checks that every header of moe has its test: include/moe/<path>/X.hpp has tests/<path>/X_test.cpp
# or X_*_test.cpp, or a line in `tested_by`. Umbrellas only include, and need none.
#   cmake -D SOURCE_DIR=<repo> -P cmake/tests_mirror.cmake
cmake_minimum_required(VERSION 3.25)

# Headers that are tested through another's test, each with the file that does it, below tests/.
set(tested_by
  "concepts.hpp                compile/user_parts.cpp"
  "instruction_set.hpp         package/instruction_sets.cpp"
  "version.hpp                 package/check.cmake"
  "compiled/boundary.hpp       compiled/moe_layer_test.cpp"
  "compiled/call_memory.hpp    compiled/moe_layer_test.cpp"
  "compiled/storages.hpp       compiled/packed_layer_test.cpp"
  "experts/activation_rows.hpp experts/expert_test.cpp"
  "experts/dense.hpp           experts/dense_ffn_test.cpp"
  "experts/each_expert.hpp     experts/sets_test.cpp"
  "experts/expert_backward.hpp experts/expert_test.cpp"
  "experts/expert_list.hpp     experts/sets_test.cpp"
  "experts/expert_params.hpp   experts/expert_test.cpp"
  "experts/expert_extent.hpp   experts/offloaded_experts_test.cpp"
  "experts/expert_store.hpp    experts/offloaded_experts_test.cpp"
  "experts/ffn_experts.hpp     experts/sets_test.cpp"
  "experts/ffn_shape.hpp       cost/cost_test.cpp"
  "experts/packed_call.hpp     experts/sets_test.cpp"
  "experts/packed_expert.hpp   layers/packed_layer_test.cpp"
  "experts/packed_experts.hpp  experts/sets_test.cpp"
  "experts/projection.hpp      experts/expert_test.cpp"
  "io/byte_source.hpp          io/safetensors_test.cpp"
  "io/cache_slots.hpp          io/expert_cache_test.cpp"
  "io/coded_weight.hpp         io/load_encoded_test.cpp"
  "io/encoded_place.hpp        io/load_encoded_test.cpp"
  "io/encoded_values.hpp       io/encoded_weight_test.cpp"
  "io/encodings.hpp            io/encoded_weight_test.cpp"
  "io/exact_file.hpp           io/training_state_test.cpp"
  "io/family_config.hpp        io/family_test.cpp"
  "io/family_router.hpp        io/save_layer_test.cpp"
  "io/family_rows.hpp          io/families_test.cpp"
  "io/gguf_config.hpp          io/gguf_model_test.cpp"
  "io/gguf_cursor.hpp          io/gguf_header_test.cpp"
  "io/gguf_types.hpp           io/gguf_header_test.cpp"
  "io/header.hpp               io/header_json_test.cpp"
  "io/json_text.hpp            io/header_json_test.cpp"
  "io/known_layer.hpp          io/save_layer_refused_test.cpp"
  "io/layer_reader.hpp         io/load_layer_test.cpp"
  "io/layer_shapes.hpp         io/load_families_test.cpp"
  "io/mapped_experts.hpp       io/packed_file_test.cpp"
  "io/open_packed.hpp          io/packed_file_test.cpp"
  "io/open_tensors.hpp         io/safetensors_test.cpp"
  "io/packed_header.hpp        io/packed_file_test.cpp"
  "io/place.hpp                io/load_layer_test.cpp"
  "io/read_back.hpp            io/save_layer_test.cpp"
  "io/read_back_experts.hpp    io/save_layer_refused_test.cpp"
  "io/read_back_router.hpp     io/save_layer_refused_test.cpp"
  "io/save_packed.hpp          io/packed_file_test.cpp"
  "io/system_file.hpp          io/safetensors_test.cpp"
  "kernels/coded_pairs.hpp     kernels/coded_tile_test.cpp"
  "kernels/coded_panel.hpp     kernels/coded_tile_test.cpp"
  "kernels/coded_steps.hpp     kernels/coded_tile_test.cpp"
  "kernels/coded_tile_avx2.hpp kernels/coded_tile_test.cpp"
  "kernels/coded_tile_avx512.hpp kernels/coded_tile_test.cpp"
  "kernels/coded_tile_neon.hpp kernels/coded_tile_test.cpp"
  "kernels/few_rows.hpp        kernels/gemm_test.cpp"
  "kernels/finite.hpp          routing/infinity_test.cpp"
  "kernels/gemm_memory.hpp     kernels/gemm_test.cpp"
  "kernels/gemm_narrow.hpp     kernels/gemm_test.cpp"
  "kernels/register_tile.hpp    kernels/gemm_test.cpp"
  "layers/depth_tape.hpp       layers/depth_test.cpp"
  "layers/layer_parts.hpp      layers/moe_layer_test.cpp"
  "layers/moe_layer_backward.hpp layers/moe_layer_gradient_test.cpp"
  "layers/product_key_tape.hpp layers/product_key_layer_test.cpp"
  "layers/slot_rows.hpp        layers/soft_moe_test.cpp"
  "layers/soft_moe_tape.hpp    layers/soft_moe_test.cpp"
  "reference/capacity.hpp      reference/layer_test.cpp"
  "reference/coefficients.hpp  layers/coefficients_test.cpp"
  "reference/expert.hpp        reference/layer_test.cpp"
  "reference/expert_choice.hpp routing/expert_choice_test.cpp"
  "reference/dynamic_top_k.hpp routing/dynamic_top_k_test.cpp"
  "reference/gate.hpp          routing/norm_gate_test.cpp"
  "reference/latent.hpp        experts/latent_test.cpp"
  "reference/output_norm.hpp   layers/output_norm_test.cpp"
  "reference/product_keys.hpp layers/product_key_layer_test.cpp"
  "reference/relu_routing.hpp routing/relu_routing_test.cpp"
  "reference/second_expert.hpp routing/second_expert_test.cpp"
  "reference/sparse_mixer.hpp routing/sparse_mixer_test.cpp"
  "reference/state_gate.hpp routing/state_gate_test.cpp"
  "reference/sinkhorn.hpp routing/sinkhorn_test.cpp"
  "reference/adjugate.hpp      experts/adjugate_test.cpp"
  "reference/balanced_assignment.hpp routing/balanced_assignment_test.cpp"
  "reference/uniform_choice.hpp routing/uniform_choice_test.cpp"
  "reference/two_level.hpp routing/two_level_test.cpp"
  "reference/sequence_top_k.hpp routing/sequence_top_k_test.cpp"
  "reference/depth.hpp         layers/depth_test.cpp"
  "reference/soft_moe.hpp      layers/soft_moe_test.cpp"
  "reference/router.hpp        reference/layer_test.cpp"
  "reference/zero.hpp          experts/zero_test.cpp"
  "routing/concepts.hpp        routing/gated_router_test.cpp"
  "routing/gate_params.hpp     routing/gate_test.cpp"
  "routing/gated_table.hpp     routing/gated_router_test.cpp"
  "routing/linear_router.hpp   routing/expert_choice_test.cpp"
  "routing/product_key_config.hpp routing/product_keys_test.cpp"
  "routing/slot_router.hpp     layers/soft_moe_test.cpp"
  "routing/top_tokens.hpp      layers/depth_test.cpp"
  "storage/bfloat16.hpp        storage/panels_test.cpp"
  "storage/float.hpp           storage/panels_test.cpp"
  "storage/mxfp4.hpp           storage/coded_test.cpp"
  "storage/q4.hpp              storage/coded_test.cpp"
  "storage/q8.hpp              storage/coded_test.cpp")

set(moe_dir ${SOURCE_DIR}/include/moe)
set(tests_dir ${SOURCE_DIR}/tests)
set(errors "")
file(GLOB_RECURSE headers RELATIVE ${moe_dir} ${moe_dir}/*.hpp)
file(GLOB_RECURSE tests RELATIVE ${tests_dir} ${tests_dir}/*_test.cpp)
list(LENGTH headers count)

# Sets `own` to the tests that bear the name of a header. What bears the longer name of another
# header is that one's: gemm_transposed_test.cpp is none of gemm.hpp.
function(find_own_tests header)
  string(REGEX REPLACE "\\.hpp$" "" name ${header})
  set(own ${tests})
  list(FILTER own INCLUDE REGEX "^${name}(_[^/]*)?_test\\.cpp$")
  foreach(other ${headers})
    string(REGEX REPLACE "\\.hpp$" "" other ${other})
    if(other MATCHES "^${name}_")
      list(FILTER own EXCLUDE REGEX "^${other}(_[^/]*)?_test\\.cpp$")
    endif()
  endforeach()
  set(own "${own}" PARENT_SCOPE)
endfunction()

set(listed "")
foreach(line ${tested_by})
  separate_arguments(line UNIX_COMMAND ${line})
  list(GET line 0 header)
  list(GET line 1 test)
  list(APPEND listed ${header})
  if(NOT header IN_LIST headers)
    string(APPEND errors "  ${header} is in `tested_by`, but there is no such header\n")
    continue()
  endif()
  if(NOT EXISTS ${tests_dir}/${test})
    string(APPEND errors "  ${header} is said to be tested by tests/${test}, which is not there\n")
  endif()
  find_own_tests(${header})
  if(own)
    string(APPEND errors "  ${header} has ${own}: take it out of `tested_by`\n")
  endif()
endforeach()

foreach(header ${headers})
  string(REGEX REPLACE "\\.hpp$" "" folder ${header})
  if(header STREQUAL "moe.hpp" OR IS_DIRECTORY ${moe_dir}/${folder} OR header IN_LIST listed)
    continue()
  endif()
  find_own_tests(${header})
  if(NOT own)
    string(APPEND errors "  ${header} has no tests/${folder}_test.cpp: write it, or say in "
                         "`tested_by` of cmake/tests_mirror.cmake which test tests it\n")
  endif()
endforeach()

if(errors)
  message(FATAL_ERROR "Headers and tests do not match:\n${errors}")
endif()
message(STATUS "${count} headers have their tests")
