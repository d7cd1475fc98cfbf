# Checks the include rule: a header of moe includes only what stands to its left in the flow.
#   cmake -D INCLUDE_DIR=<repo>/include -P cmake/include_rule.cmake
# A new folder, or a new header outside of the folders, must be placed in `flow`.
cmake_minimum_required(VERSION 3.25)
include(${CMAKE_CURRENT_LIST_DIR}/read_includes.cmake)

# One line a step, left to right: folders, or headers outside of them. The headers of a folder may
# include each other; the folders of one line may not, but for what `shared` names.
set(flow
  "instruction_set.hpp version.hpp"
  "detail"
  "types.hpp flops.hpp growing_matrix.hpp router_config.hpp config.hpp call_options.hpp routing_table.hpp row_groups.hpp"
  "parameters.hpp concepts.hpp"
  "kernels"
  "storage"
  "routing dispatch experts"
  "layers"
  "losses cost train reference compiled"
  "io")
set(shared dispatch/plan.hpp)
set(moe_dir ${INCLUDE_DIR}/moe)
set(errors "")

# Sets `place` to what stands for a header in `flow`: its folder, or itself.
function(find_place header)
  set(place ${header})
  if(header MATCHES "^([^/]+)/")
    set(place ${CMAKE_MATCH_1})
  endif()
  set(place ${place} PARENT_SCOPE)
endfunction()

# Sets `step` to the number of the line of `flow` that names a place, -1 if none does.
function(find_step place)
  set(step -1 PARENT_SCOPE)
  set(number 0)
  foreach(line ${flow})
    separate_arguments(names UNIX_COMMAND ${line})
    if(place IN_LIST names)
      set(step ${number} PARENT_SCOPE)
      return()
    endif()
    math(EXPR number "${number} + 1")
  endforeach()
endfunction()

# Sets `includes` to the headers of moe that `header` includes, relative to include/moe, and
# `others` to the rest.
function(read_includes header)
  moe_read_includes(${INCLUDE_DIR} ${moe_dir}/${header})
  set(relative "")
  foreach(file ${includes})
    file(RELATIVE_PATH file ${moe_dir} ${file})
    list(APPEND relative ${file})
  endforeach()
  set(includes "${relative}" PARENT_SCOPE)
  set(others "${others}" PARENT_SCOPE)
endfunction()

file(REAL_PATH ${moe_dir} moe_dir)
file(GLOB_RECURSE headers RELATIVE ${moe_dir} ${moe_dir}/*.hpp)
file(GLOB folders RELATIVE ${moe_dir} LIST_DIRECTORIES true ${moe_dir}/*)
list(FILTER folders EXCLUDE REGEX "\\.hpp$")
list(LENGTH headers count)

# moe.hpp and an umbrella of each folder, <folder>.hpp, stand outside of the flow.
set(umbrellas moe.hpp)
foreach(folder ${folders})
  list(APPEND umbrellas ${folder}.hpp)
endforeach()

foreach(header ${headers})
  if(header IN_LIST umbrellas)
    continue()
  endif()
  find_place(${header})
  set(own_place ${place})
  find_step(${place})
  set(own_step ${step})
  if(own_step EQUAL -1)
    string(APPEND errors "  ${header} has no place: add it to `flow` in cmake/include_rule.cmake\n")
    continue()
  endif()
  read_includes(${header})
  foreach(included ${includes})
    find_place(${included})
    find_step(${place})
    if(step EQUAL own_step
        AND (place STREQUAL own_place OR NOT header MATCHES "/" OR included IN_LIST shared))
      continue()
    endif()
    if(step EQUAL -1 OR NOT step LESS own_step)
      string(APPEND errors "  ${header} includes ${included}, which is not to its left\n")
    endif()
  endforeach()
  foreach(path ${others})
    if(path MATCHES "^nlohmann/" AND NOT header MATCHES "^io/")
      string(APPEND errors "  ${header} includes <${path}>, which belongs to another folder\n")
    endif()
  endforeach()
endforeach()

# The umbrella of a folder has all of it. What may change without notice has none.
foreach(folder ${folders})
  if(NOT EXISTS ${moe_dir}/${folder}.hpp)
    if(NOT folder STREQUAL "detail")
      string(APPEND errors "  ${folder}.hpp, the umbrella of ${folder}/, is missing\n")
    endif()
    continue()
  endif()
  read_includes(${folder}.hpp)
  file(GLOB_RECURSE wanted RELATIVE ${moe_dir} ${moe_dir}/${folder}/*.hpp)
  list(SORT includes)
  list(SORT wanted)
  if(NOT includes STREQUAL wanted)
    string(APPEND errors "  ${folder}.hpp includes ${includes}, expected ${wanted}\n")
  endif()
endforeach()

# What a first program includes needs no more than Eigen, and no library.
read_includes(moe.hpp)
foreach(included ${includes})
  if(included MATCHES "^(io|reference|compiled)[./]")
    string(APPEND errors "  moe.hpp includes ${included}\n")
  endif()
endforeach()

if(errors)
  message(FATAL_ERROR "The include rule is broken:\n${errors}")
endif()
message(STATUS "${count} headers keep the include rule")
