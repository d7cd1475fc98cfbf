# Fails if an object of moe::compiled has a name that others see but its entry, calls a function of
# moe's or Eigen's outside of itself, or runs anything before it is called.
#   cmake -D OBJECT=<file> -D ENTRY=<name> -D NM=<nm> -D OBJDUMP=<objdump> -P sealed.cmake
cmake_minimum_required(VERSION 3.25)
function(run result)
  execute_process(COMMAND ${ARGN} OUTPUT_VARIABLE output COMMAND_ERROR_IS_FATAL ANY)
  set(${result} "${output}" PARENT_SCOPE)
endfunction()
run(defined ${NM} --extern-only --defined-only ${OBJECT})
run(undefined ${NM} --undefined-only ${OBJECT})
run(sections ${OBJDUMP} -h ${OBJECT})

if(NOT defined MATCHES "^[0-9a-f]+ T ${ENTRY}\n$")
  message(FATAL_ERROR "expected ${ENTRY} alone to be seen, but there are\n${defined}")
endif()
if(undefined MATCHES "(_Z[^\n]*(3moe|5Eigen)[^\n]*)")
  message(FATAL_ERROR "calls what another object may have: ${CMAKE_MATCH_1}")
endif()
if(sections MATCHES "(\\.(pre)?init_array|\\.ctors)")
  message(FATAL_ERROR "has ${CMAKE_MATCH_1}: code that runs before main()")
endif()
