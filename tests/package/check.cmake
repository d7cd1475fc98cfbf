# Builds and runs tests/package/consumer against moe, from a clean folder.
# MODE find_package: against an installed copy, moved after the installation to show that the
# package holds no absolute path of its own. MODE add_subdirectory: against the sources.
cmake_minimum_required(VERSION 3.25)
file(REMOVE_RECURSE ${WORK})
set(options -D MODE=${MODE} -D CMAKE_CXX_COMPILER=${COMPILER} -D Eigen3_DIR=${EIGEN_DIR})
if(MODE STREQUAL "find_package")
  execute_process(
    COMMAND ${CMAKE_COMMAND} --install ${MOE_BUILD} --config ${CONFIG} --prefix ${WORK}/installed
    OUTPUT_QUIET COMMAND_ERROR_IS_FATAL ANY)
  file(RENAME ${WORK}/installed ${WORK}/moved)
  list(APPEND options -D CMAKE_PREFIX_PATH=${WORK}/moved -D WITH_IO=${WITH_IO}
              -D WITH_COMPILED=${WITH_COMPILED} -D MOE_VERSION=${MOE_VERSION})
  if(WITH_IO)
    list(APPEND options -D nlohmann_json_DIR=${JSON_DIR})
  endif()
else()
  list(APPEND options -D MOE_SOURCE=${MOE_SOURCE})
endif()
execute_process(
  COMMAND ${CMAKE_COMMAND} -G ${GENERATOR} -S ${MOE_SOURCE}/tests/package/consumer -B ${WORK}/build
          ${options}
  COMMAND_ERROR_IS_FATAL ANY)
execute_process(COMMAND ${CMAKE_COMMAND} --build ${WORK}/build COMMAND_ERROR_IS_FATAL ANY)
execute_process(COMMAND ${WORK}/build/consumer COMMAND_ERROR_IS_FATAL ANY)
if(WITH_COMPILED AND MODE STREQUAL "find_package")
  execute_process(COMMAND ${WORK}/build/consumer_of_compiled COMMAND_ERROR_IS_FATAL ANY)
endif()
