# Checks the include rule: a header of moe includes only what stands to its left in the flow.
#   cmake -D INCLUDE_DIR=<repo>/include -P cmake/include_rule.cmake
# A new header must be placed in `flow`.
cmake_minimum_required(VERSION 3.25)

# One line a step, left to right. Headers of one folder may include each other; those of a line
# marked `peers` too.
set(flow
  "kernels/instruction_set"
  "detail/*"
  "types version"
  "config"
  "kernels/*"
  "activation routing_table dispatch_plan router_params router_noise expert_params part peers"
  "concepts routing_weights"
  "router routing/* expert"
  "combine dense_ffn expert_rows"
  "packed_expert layer_tape"
  "moe_layer"
  "packed_layer"
  "reference loss cost optimizer peers"
  "io/*"
  "mpi/*")
set(moe_dir ${INCLUDE_DIR}/moe)
set(errors "")

# Sets `step` to the place of a header in `flow` (-1: none), `is_peer` to whether its line has peers.
function(find_step header)
  get_filename_component(folder ${header} DIRECTORY)
  string(REGEX REPLACE "\\.hpp$" "" name ${header})
  set(step -1 PARENT_SCOPE)
  set(number 0)
  foreach(line ${flow})
    separate_arguments(names UNIX_COMMAND ${line})
    if(name IN_LIST names OR (folder AND "${folder}/*" IN_LIST names))
      set(step ${number} PARENT_SCOPE)
      set(is_peer FALSE PARENT_SCOPE)
      if("peers" IN_LIST names)
        set(is_peer TRUE PARENT_SCOPE)
      endif()
      return()
    endif()
    math(EXPR number "${number} + 1")
  endforeach()
endfunction()

# Sets `includes` to the headers of moe that `header` includes, relative to include/moe, and
# `others` to the rest.
function(read_includes header)
  file(STRINGS ${moe_dir}/${header} lines REGEX "^[ \t]*#[ \t]*include")
  get_filename_component(folder ${moe_dir}/${header} DIRECTORY)
  set(includes "")
  set(others "")
  foreach(line ${lines})
    string(REGEX MATCH "include[ \t]*([<\"])([^>\"]+)" _ ${line})
    set(path "${CMAKE_MATCH_2}")
    if(CMAKE_MATCH_1 STREQUAL "\"" AND EXISTS "${folder}/${path}")
      file(REAL_PATH "${folder}/${path}" file)
    elseif(path MATCHES "^moe/")
      file(REAL_PATH "${INCLUDE_DIR}/${path}" file)
    else()
      list(APPEND others ${path})
      continue()
    endif()
    file(RELATIVE_PATH file ${moe_dir} ${file})
    list(APPEND includes ${file})
  endforeach()
  set(includes "${includes}" PARENT_SCOPE)
  set(others "${others}" PARENT_SCOPE)
endfunction()

file(REAL_PATH ${moe_dir} moe_dir)
file(GLOB_RECURSE headers RELATIVE ${moe_dir} ${moe_dir}/*.hpp)
list(REMOVE_ITEM headers moe.hpp)
list(LENGTH headers count)
foreach(header ${headers})
  find_step(${header})
  set(own_step ${step})
  set(own_peer ${is_peer})
  get_filename_component(own_folder ${header} DIRECTORY)
  if(own_step EQUAL -1)
    string(APPEND errors "  ${header} has no place: add it to `flow` in cmake/include_rule.cmake\n")
    continue()
  endif()
  read_includes(${header})
  foreach(included ${includes})
    find_step(${included})
    get_filename_component(folder ${included} DIRECTORY)
    if(step EQUAL own_step AND (own_peer OR (folder AND folder STREQUAL own_folder)))
      continue()
    endif()
    if(step EQUAL -1 OR NOT step LESS own_step)
      string(APPEND errors "  ${header} includes ${included}, which is not to its left\n")
    endif()
  endforeach()
  foreach(path ${others})
    if((path STREQUAL "mpi.h" AND NOT header MATCHES "^mpi/")
        OR (path MATCHES "^nlohmann/" AND NOT header MATCHES "^io/"))
      string(APPEND errors "  ${header} includes <${path}>, which belongs to another folder\n")
    endif()
  endforeach()
endforeach()

# The umbrella has all of the top level but the slow reference, and nothing that needs more than Eigen.
if(EXISTS ${moe_dir}/moe.hpp)
  read_includes(moe.hpp)
  foreach(header ${headers})
    if(NOT header MATCHES "/" AND NOT header STREQUAL "reference.hpp"
        AND NOT header IN_LIST includes)
      string(APPEND errors "  moe.hpp lacks ${header}\n")
    endif()
  endforeach()
  foreach(included ${includes})
    if(included MATCHES "^(io|mpi)/|^reference\\.hpp$")
      string(APPEND errors "  moe.hpp includes ${included}\n")
    endif()
  endforeach()
endif()

if(errors)
  message(FATAL_ERROR "The include rule is broken:\n${errors}")
endif()
message(STATUS "${count} headers keep the include rule")
