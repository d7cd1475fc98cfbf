# Toolchain: 64-bit Windows from Debian. Programs carry their run-time with them, and run under wine.
#   apt-get install -y g++-mingw-w64-x86-64-posix wine64 googletest
set(CMAKE_SYSTEM_NAME Windows)
set(CMAKE_SYSTEM_PROCESSOR AMD64)
set(CMAKE_C_COMPILER x86_64-w64-mingw32-gcc-posix)
set(CMAKE_CXX_COMPILER x86_64-w64-mingw32-g++-posix)
set(CMAKE_RC_COMPILER x86_64-w64-mingw32-windres)
set(CMAKE_CXX_FLAGS_INIT -Wa,-mbig-obj)  # else an object has 65,279 sections at most
set(CMAKE_EXE_LINKER_FLAGS_INIT -static)
set(CMAKE_CROSSCOMPILING_EMULATOR /usr/lib/wine/wine64)  # wine64 alone puts nothing into the PATH
# The OpenMP of -static: CMake would name the library of the DLL.
set(OpenMP_gomp_LIBRARY gomp CACHE STRING "")
# Libraries of the other machine only; headers that are the same for both, like Eigen, from this one.
set(CMAKE_FIND_ROOT_PATH /usr/x86_64-w64-mingw32)
set(CMAKE_FIND_ROOT_PATH_MODE_PROGRAM NEVER)
set(CMAKE_FIND_ROOT_PATH_MODE_LIBRARY ONLY)
# nlohmann-json lies in /usr/include, among headers of Linux: it is taken from a folder of its own.
set(CMAKE_DISABLE_FIND_PACKAGE_nlohmann_json ON)
set(FETCHCONTENT_SOURCE_DIR_NLOHMANN_JSON ${CMAKE_BINARY_DIR}/headers)
file(MAKE_DIRECTORY ${CMAKE_BINARY_DIR}/headers/include)
file(CREATE_LINK /usr/include/nlohmann ${CMAKE_BINARY_DIR}/headers/include/nlohmann SYMBOLIC)
