# cmake --install: headers, the CMake package and moe.pc.
include(GNUInstallDirs)
include(CMakePackageConfigHelpers)
set(package_dir ${CMAKE_INSTALL_DATADIR}/cmake/moe)  # share/: nothing in it depends on the machine

install(TARGETS moe EXPORT moe-targets FILE_SET HEADERS)
install(EXPORT moe-targets NAMESPACE moe:: DESTINATION ${package_dir})
if(TARGET moe_io)
  install(TARGETS moe_io EXPORT moe-io-targets FILE_SET HEADERS)
  install(EXPORT moe-io-targets NAMESPACE moe:: DESTINATION ${package_dir})
endif()
if(TARGET moe_compiled)  # beside the library: this depends on the machine
  install(TARGETS moe_compiled EXPORT moe-compiled-targets FILE_SET HEADERS)
  install(EXPORT moe-compiled-targets NAMESPACE moe::
          DESTINATION ${CMAKE_INSTALL_LIBDIR}/cmake/moe-compiled)
endif()

configure_package_config_file(cmake/moe-config.cmake.in moe-config.cmake
                              INSTALL_DESTINATION ${package_dir} PATH_VARS CMAKE_INSTALL_LIBDIR)
write_basic_package_version_file(moe-config-version.cmake COMPATIBILITY SameMinorVersion
                                 ARCH_INDEPENDENT)
install(FILES ${PROJECT_BINARY_DIR}/moe-config.cmake ${PROJECT_BINARY_DIR}/moe-config-version.cmake
        DESTINATION ${package_dir})

# For builds without CMake. Threads of layers are the compiler's -fopenmp, which no .pc file can
# name; those of moe/io/ are in the C library, or in one of their own where it is older.
file(CONFIGURE OUTPUT moe.pc @ONLY CONTENT
"prefix=\${pcfiledir}/../..
Name: moe
Description: @PROJECT_DESCRIPTION@
Version: @PROJECT_VERSION@
Requires: eigen3 >= 3.4
Cflags: -I\${prefix}/@CMAKE_INSTALL_INCLUDEDIR@
Libs: @CMAKE_THREAD_LIBS_INIT@
")
install(FILES ${PROJECT_BINARY_DIR}/moe.pc DESTINATION ${CMAKE_INSTALL_DATADIR}/pkgconfig)
