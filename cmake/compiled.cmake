# moe::compiled: the layers of the default types, compiled once for each instruction set, in a
# static library that chooses at run time. See include/moe/compiled/.
#
# The linker keeps one copy of each inline function of Eigen's and the standard library's, perhaps
# that of an object for AVX-512, for all of a program. So the object of an instruction set is linked
# by itself and keeps no name that others see but its entry.
include(CheckCXXCompilerFlag)
set(compiled_dir ${PROJECT_SOURCE_DIR}/include/moe/compiled)

set(several_sets OFF)
if(CMAKE_SYSTEM_PROCESSOR MATCHES "^(x86_64|AMD64|amd64)$" AND CMAKE_SIZEOF_VOID_P EQUAL 8
    AND CMAKE_EXECUTABLE_FORMAT STREQUAL "ELF")
  find_program(MOE_GNU_LD NAMES ld.bfd ld DOC "Linker of GNU binutils, for moe::compiled")
  set(ld_help "")
  if(MOE_GNU_LD)
    execute_process(COMMAND ${MOE_GNU_LD} --help OUTPUT_VARIABLE ld_help ERROR_QUIET)
  endif()
  check_cxx_compiler_flag("-march=x86-64-v4 -mavx512bf16 -mavxvnni" MOE_HAS_MARCH_X86_64_V4)
  if(ld_help MATCHES "--force-group-allocation" AND CMAKE_OBJCOPY AND MOE_HAS_MARCH_X86_64_V4)
    set(several_sets ON)
  endif()
endif()
if(NOT several_sets)
  message(STATUS "moe: moe::compiled has one instruction set, the least: several take x86-64, ELF, "
                 "ld and objcopy of GNU binutils, and a compiler that knows -march=x86-64-v4")
endif()

add_library(moe_compiled STATIC ${compiled_dir}/choice.cpp)
add_library(moe::compiled ALIAS moe_compiled)
file(GLOB compiled_headers CONFIGURE_DEPENDS
     ${PROJECT_SOURCE_DIR}/include/moe/compiled.hpp ${compiled_dir}/*.hpp)
set_target_properties(moe_compiled PROPERTIES EXPORT_NAME compiled POSITION_INDEPENDENT_CODE ON)
target_sources(moe_compiled PUBLIC FILE_SET HEADERS BASE_DIRS include FILES ${compiled_headers})
target_link_libraries(moe_compiled PUBLIC moe)

# The objects of an instruction set. The flags stand behind those of CMAKE_CXX_FLAGS, and so does
# -O3: speed is what the library is for.
function(moe_compile_set name)
  set(target moe_compiled_${name})
  add_library(${target} OBJECT ${compiled_dir}/one_set.cpp)
  target_link_libraries(${target} PRIVATE moe)
  target_compile_definitions(${target} PRIVATE MOE_COMPILED_ENTRY=moe_compiled_${name})
  target_compile_options(${target} PRIVATE ${ARGN} $<$<NOT:$<CONFIG:Debug>>:-O3>)
  set_target_properties(${target} PROPERTIES
    POSITION_INDEPENDENT_CODE ON INTERPROCEDURAL_OPTIMIZATION OFF)
endfunction()

# Sets `result` to one object with all of theirs, which has no name but moe_compiled_<name>.
function(moe_seal_set result name)
  set(folder ${PROJECT_BINARY_DIR}/compiled)
  file(MAKE_DIRECTORY ${folder})
  add_custom_command(OUTPUT ${folder}/${name}.o
    COMMAND ${MOE_GNU_LD} -r --force-group-allocation -o ${folder}/${name}.open.o
            $<TARGET_OBJECTS:moe_compiled_${name}>
    COMMAND ${CMAKE_OBJCOPY} --keep-global-symbol=moe_compiled_${name}
            ${folder}/${name}.open.o ${folder}/${name}.o
    BYPRODUCTS ${folder}/${name}.open.o
    DEPENDS moe_compiled_${name} $<TARGET_OBJECTS:moe_compiled_${name}>
    COMMENT "Sealing the object of instruction set ${name}"
    COMMAND_EXPAND_LISTS VERBATIM)
  set_source_files_properties(${folder}/${name}.o PROPERTIES EXTERNAL_OBJECT ON GENERATED ON)
  set(${result} ${folder}/${name}.o PARENT_SCOPE)
endfunction()

set(compiled_objects "")
if(NOT several_sets)
  set(compiled_sets baseline)
  moe_compile_set(baseline)
  target_sources(moe_compiled PRIVATE $<TARGET_OBJECTS:moe_compiled_baseline>)
  return()
endif()

# Name and flags of each; choice.cpp knows the names and what they ask of a processor.
set(compiled_sets "")
target_compile_definitions(moe_compiled PRIVATE MOE_COMPILED_X86_64)
target_compile_options(moe_compiled PRIVATE -march=x86-64)
foreach(set "baseline -march=x86-64"
        "v3 -march=x86-64-v3" "v3_vnni -march=x86-64-v3 -mavxvnni"
        "v4 -march=x86-64-v4" "v4_vnni -march=x86-64-v4 -mavx512vnni"
        "v4_bf16 -march=x86-64-v4 -mavx512vnni -mavx512bf16 -mavx512vbmi")
  separate_arguments(flags UNIX_COMMAND ${set})
  list(POP_FRONT flags name)
  list(APPEND flags -fno-lto)
  if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
    list(APPEND flags -fno-gnu-unique)  # so that objcopy can make every name local
  endif()
  moe_compile_set(${name} ${flags})
  moe_seal_set(object ${name})
  list(APPEND compiled_sets ${name})
  list(APPEND compiled_objects ${object})
endforeach()
target_sources(moe_compiled PRIVATE ${compiled_objects})
