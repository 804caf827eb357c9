# GoogleTest for the torch-free kernels: tests/csrc/test_<family>.cpp, one executable each.
# Never downloaded here: install it yourself (Debian: libgtest-dev).
find_package(GTest QUIET)
if(NOT GTest_FOUND)
  message(STATUS "GoogleTest was not found (Debian: apt-get install libgtest-dev): C++ tests are left out")
  return()
endif()
enable_testing()
include(GoogleTest)
foreach(name isa exp hmm_emissions routing_weights ${ONESHOT_FAMILIES})
  add_executable(test_${name} tests/csrc/test_${name}.cpp tests/csrc/main.cpp)
  target_link_libraries(test_${name} PRIVATE oneshot_kernels GTest::gtest)
  target_include_directories(test_${name} PRIVATE tests/csrc)
  # Every level the machine has; a level it lacks is skipped (exit code 77).
  foreach(level scalar avx2 avx512)
    gtest_discover_tests(test_${name} TEST_PREFIX "${level}." DISCOVERY_MODE PRE_TEST
      PROPERTIES ENVIRONMENT "ONESHOT_CPU_ISA=${level}" SKIP_RETURN_CODE 77)
  endforeach()
endforeach()
