# Tests of Windows run by wine: the first starts wine, and the last stops it. Each test would else
# wait for what it started itself, three seconds, as that writes to the test's output.
get_filename_component(wine_dir ${CMAKE_CROSSCOMPILING_EMULATOR} DIRECTORY)
get_property(tests DIRECTORY PROPERTY TESTS)
set_tests_properties(${tests} PROPERTIES FIXTURES_REQUIRED wine)
add_test(NAME wine.start COMMAND sh -c "exec </dev/null >/dev/null 2>&1
  mkdir -p \"$WINEPREFIX\"
  ${wine_dir}/wineserver64 -p
  ${CMAKE_CROSSCOMPILING_EMULATOR} wineboot -i")
add_test(NAME wine.stop COMMAND ${wine_dir}/wineserver64 -k)
set_tests_properties(wine.start PROPERTIES FIXTURES_SETUP wine)
set_tests_properties(wine.stop PROPERTIES FIXTURES_CLEANUP wine)
