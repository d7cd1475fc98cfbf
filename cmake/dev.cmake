# How our own tests, benches and examples are compiled. Nothing here reaches a user of moe::moe.
include(CheckCXXCompilerFlag)
check_cxx_compiler_flag(-march=native MOE_HAS_MARCH_NATIVE)
set(default_arch "")
if(PROJECT_IS_TOP_LEVEL AND NOT CMAKE_CROSSCOMPILING AND MOE_HAS_MARCH_NATIVE)
  set(default_arch native)
endif()
set(MOE_ARCH "${default_arch}" CACHE STRING "Instruction set, as -march: native, x86-64-v3; empty: the least")
option(MOE_WERROR "Warnings are errors" ${PROJECT_IS_TOP_LEVEL})
set(MOE_SANITIZE "" CACHE STRING "Sanitizers of -fsanitize=: address,undefined or thread")

if(PROJECT_IS_TOP_LEVEL AND NOT CMAKE_BUILD_TYPE AND NOT CMAKE_CONFIGURATION_TYPES)
  set(CMAKE_BUILD_TYPE Release)
endif()

add_library(moe_dev INTERFACE)
target_link_libraries(moe_dev INTERFACE moe::moe)
if(NOT MSVC)
  target_compile_options(moe_dev INTERFACE -Wall -Wextra -Wpedantic -Wconversion -Wshadow)
  if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU" AND CMAKE_CXX_COMPILER_VERSION VERSION_LESS 13)
    # False alarms of GCC 12: at `"a" + string` (bug 105651), and in its own AVX-512 intrinsics
    # below Eigen (bug 105593).
    target_compile_options(moe_dev INTERFACE -Wno-restrict -Wno-uninitialized -Wno-maybe-uninitialized)
  endif()
  if(MOE_WERROR)
    target_compile_options(moe_dev INTERFACE -Werror)
  endif()
endif()
if(MOE_ARCH)
  target_compile_options(moe_dev INTERFACE -march=${MOE_ARCH})
endif()
if(MOE_SANITIZE)
  target_compile_options(moe_dev INTERFACE -fsanitize=${MOE_SANITIZE} -fno-sanitize-recover=all
                                           -fno-omit-frame-pointer)
  target_link_options(moe_dev INTERFACE -fsanitize=${MOE_SANITIZE})
  if(CMAKE_CXX_COMPILER_ID MATCHES "Clang")
    target_compile_options(moe_dev INTERFACE
      -fsanitize-ignorelist=${PROJECT_SOURCE_DIR}/cmake/faults_of_others.txt)
  endif()
endif()

# moe_add_program(<target> <sources>...): a program of ours, with moe::io where it exists.
function(moe_add_program target)
  add_executable(${target} ${ARGN})
  target_link_libraries(${target} PRIVATE moe_dev $<TARGET_NAME_IF_EXISTS:moe::io>)
endfunction()

# Sets `result` to those of the sources that can be built here: all but those that include a part
# of moe whose target is missing.
function(moe_buildable result)
  set(kept)
  foreach(source ${ARGN})
    file(STRINGS ${source} needs_io REGEX "^#include [<\"]moe/io/")
    file(STRINGS ${source} needs_compiled REGEX "^#include [<\"]moe/compiled")
    if((needs_io AND NOT TARGET moe::io)
        OR (needs_compiled AND NOT TARGET moe::compiled))
      message(STATUS "moe: left out ${source}, its part of moe is not built here")
    else()
      list(APPEND kept ${source})
    endif()
  endforeach()
  set(${result} ${kept} PARENT_SCOPE)
endfunction()
