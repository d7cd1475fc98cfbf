# Third-party packages: look on the machine first, download second, and say what to install third.
set(MOE_FETCH AUTO CACHE STRING "Download missing packages: AUTO (if the network answers), ON, OFF")
set_property(CACHE MOE_FETCH PROPERTY STRINGS AUTO ON OFF)
include(FetchContent)

# Sets `result` to whether the package may be downloaded. FetchContent needs more than a minute to
# give up on a closed network, so AUTO asks the host for one small file first.
function(moe_can_fetch result package url)
  string(TOLOWER ${package} lower)
  string(TOUPPER ${package} upper)
  file(GLOB unpacked "${FETCHCONTENT_BASE_DIR}/${lower}-src/*")  # by an earlier run
  set(${result} FALSE PARENT_SCOPE)
  if(FETCHCONTENT_SOURCE_DIR_${upper} OR MOE_FETCH STREQUAL "ON")
    set(${result} TRUE PARENT_SCOPE)
  elseif(MOE_FETCH STREQUAL "AUTO" AND NOT FETCHCONTENT_FULLY_DISCONNECTED)
    string(REGEX MATCH "^https://[^/]+" host ${url})
    get_property(answer GLOBAL PROPERTY "moe_network_${host}")
    if(unpacked)
      set(answer 0)
    elseif(answer STREQUAL "")
      file(DOWNLOAD ${host}/robots.txt TIMEOUT 5 INACTIVITY_TIMEOUT 5 STATUS status)
      list(GET status 0 answer)
      set_property(GLOBAL PROPERTY "moe_network_${host}" ${answer})
    endif()
    if(answer EQUAL 0)
      set(${result} TRUE PARENT_SCOPE)
    endif()
  endif()
endfunction()

# moe_need(<target> PACKAGE <cmake package> [VERSION <least>] APT <debian package> URL <archive>
#          SHA256 <hash> [HEADERS <folder>] [OPTIONAL])
# Makes <target> exist in every directory. HEADERS marks a header-only package: its archive is only
# unpacked, because the build files of Eigen and others add targets and rules of their own. What is
# OPTIONAL may stay missing, and is not downloaded into somebody else's project.
function(moe_need target)
  cmake_parse_arguments(PARSE_ARGV 1 arg OPTIONAL "PACKAGE;VERSION;APT;URL;SHA256;HEADERS" "")
  if(TARGET ${target})
    return()
  endif()
  find_package(${arg_PACKAGE} ${arg_VERSION} CONFIG QUIET GLOBAL)
  set(found_version ${${arg_PACKAGE}_VERSION})
  if(TARGET ${target})
    message(STATUS "moe: ${arg_PACKAGE} ${found_version} in ${${arg_PACKAGE}_DIR}")
    set(${arg_PACKAGE}_VERSION ${found_version} PARENT_SCOPE)
    return()
  endif()
  if(arg_OPTIONAL AND NOT PROJECT_IS_TOP_LEVEL AND NOT MOE_FETCH STREQUAL "ON")
    return()
  endif()

  moe_can_fetch(can_fetch ${arg_PACKAGE} ${arg_URL})
  if(can_fetch)
    message(STATUS "moe: ${arg_PACKAGE} from ${arg_URL}")
    set(CMAKE_POLICY_DEFAULT_CMP0077 NEW)
    set(INSTALL_GTEST OFF)
    set(BENCHMARK_ENABLE_TESTING OFF)
    set(BENCHMARK_ENABLE_INSTALL OFF)
    set(BENCHMARK_ENABLE_WERROR OFF)
    set(source_subdir)
    if(arg_HEADERS)
      set(source_subdir SOURCE_SUBDIR no-build-files-here)
    endif()
    # SYSTEM comes first: CMake 3.25 takes it for a part of the argument before it.
    FetchContent_Declare(${arg_PACKAGE} SYSTEM URL ${arg_URL} URL_HASH SHA256=${arg_SHA256}
                         DOWNLOAD_EXTRACT_TIMESTAMP OFF ${source_subdir})
    FetchContent_MakeAvailable(${arg_PACKAGE})
    if(arg_HEADERS)
      string(TOLOWER ${arg_PACKAGE} lower)
      add_library(${target} INTERFACE IMPORTED GLOBAL)
      target_include_directories(${target} INTERFACE "${${lower}_SOURCE_DIR}/${arg_HEADERS}")
    endif()
  endif()

  if(NOT TARGET ${target} AND NOT arg_OPTIONAL)
    message(FATAL_ERROR
      "moe: ${arg_PACKAGE} ${arg_VERSION} is not installed and was not downloaded "
      "(MOE_FETCH=${MOE_FETCH}).\n"
      "Install it:\n  apt-get install -y ${arg_APT}\n"
      "or all that moe can use:\n  apt-get install -y libeigen3-dev nlohmann-json3-dev libgtest-dev "
      "libbenchmark-dev libcli11-dev\n"
      "Elsewhere: tell CMake where it is with -DCMAKE_PREFIX_PATH=<prefix>, or leave out what needs "
      "it with -DMOE_BUILD_TESTS=OFF, -DMOE_BUILD_BENCH=OFF, -DMOE_BUILD_EXAMPLES=OFF.")
  endif()
endfunction()

# Asked for without a version: the version file of Eigen 3.4 rejects the range 3.4...5, and that of
# Eigen 5 rejects 3.4.
function(moe_need_eigen)
  moe_need(Eigen3::Eigen PACKAGE Eigen3 APT libeigen3-dev HEADERS .
    URL https://gitlab.com/libeigen/eigen/-/archive/3.4.0/eigen-3.4.0.tar.gz
    SHA256 8586084f71f9bde545ee7fa6d00288b264a2b7ac3607b974e54d13e7162c1c72)
  if(Eigen3_VERSION AND (Eigen3_VERSION VERSION_LESS 3.4 OR Eigen3_VERSION VERSION_GREATER_EQUAL 6))
    message(FATAL_ERROR "moe needs Eigen >= 3.4 and < 6, but ${Eigen3_DIR} has ${Eigen3_VERSION}. "
                        "Name another one with -DEigen3_DIR=<folder of Eigen3Config.cmake>.")
  endif()
endfunction()

function(moe_need_gtest)
  moe_need(GTest::gtest_main PACKAGE GTest APT libgtest-dev
    URL https://github.com/google/googletest/archive/refs/tags/v1.14.0.tar.gz
    SHA256 8ad598c73ad796e0d8280b082cebd82a630d73e73cd3c70057938a6501bba5d7)
endfunction()

function(moe_need_benchmark)
  moe_need(benchmark::benchmark_main PACKAGE benchmark APT libbenchmark-dev
    URL https://github.com/google/benchmark/archive/refs/tags/v1.8.3.tar.gz
    SHA256 6bc180a57d23d4d9515519f92b0c83d61b05b5bab188961f36ac7b06b0d9e9ce)
endfunction()

function(moe_need_cli11)
  moe_need(CLI11::CLI11 PACKAGE CLI11 APT libcli11-dev HEADERS include
    URL https://github.com/CLIUtils/CLI11/archive/refs/tags/v2.3.2.tar.gz
    SHA256 aac0ab42108131ac5d3344a9db0fdf25c4db652296641955720a4fbe52334e22)
endfunction()

function(moe_want_json)
  moe_need(nlohmann_json::nlohmann_json PACKAGE nlohmann_json VERSION 3.10 APT nlohmann-json3-dev
    HEADERS include OPTIONAL
    URL https://github.com/nlohmann/json/releases/download/v3.11.3/json.tar.xz
    SHA256 d6c65aca6b1ed68e7a182f4757257b107ae403032760ed6ef121c9d55e81757d)
endfunction()
