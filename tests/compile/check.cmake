# Compiles one case of this folder. Its first line says what must happen:
#   // compiles            the compiler accepts it
#   // expect: <regex>     the compiler rejects it, and an output line matches (CMake regex)
# and the lines after it may say with what:
#   // flags: <options>    of every compiler, or "GNU flags:", "Clang flags:"
# A failure alone proves nothing: a misspelt name fails too. Source lines are kept out of the
# compiler's output, so that the regex can match only its words.
cmake_minimum_required(VERSION 3.25)
file(READ ${CASE} source)
string(REGEX MATCH "^[^\r\n]*" first_line "${source}")

set(options)
foreach(folder ${INCLUDE_DIRS})
  cmake_path(IS_PREFIX SOURCE_DIR ${folder} ours)
  if(ours)
    list(APPEND options -I${folder})
  else()
    list(APPEND options -isystem ${folder})
  endif()
endforeach()
string(REGEX MATCHALL "\n// (${COMPILER_ID} |)flags: [^\r\n]*" lines "${source}")
list(TRANSFORM lines REPLACE ".*flags: " "")
list(JOIN lines " " flags)
separate_arguments(flags UNIX_COMMAND "${flags}")
list(APPEND options ${flags})
set(no_source_lines -fno-diagnostics-show-caret)
if(COMPILER_ID MATCHES "Clang")
  set(no_source_lines -fno-caret-diagnostics)
endif()
execute_process(
  COMMAND ${CMAKE_COMMAND} -E env LC_ALL=C
          ${COMPILER} -std=c++20 -fsyntax-only ${no_source_lines} ${options} ${CASE}
  RESULT_VARIABLE status OUTPUT_VARIABLE output ERROR_VARIABLE output)
string(REPLACE "${CASE}" "case.cpp" output "${output}")

if(first_line STREQUAL "// compiles")
  if(NOT status EQUAL 0)
    message(FATAL_ERROR "does not compile:\n${output}")
  endif()
elseif(first_line MATCHES "^// expect: (.+)$")
  if(status EQUAL 0)
    message(FATAL_ERROR "compiles, but must not; expected: ${CMAKE_MATCH_1}")
  elseif(NOT output MATCHES "${CMAKE_MATCH_1}")
    message(FATAL_ERROR "fails without the message '${CMAKE_MATCH_1}':\n${output}")
  endif()
else()
  message(FATAL_ERROR "the first line must be '// compiles' or '// expect: <regex>'")
endif()
