# GoogleTest for the torch-free kernels: tests/csrc/test_<name>.cpp, one executable each.
# An installed GoogleTest is used; otherwise this release is downloaded into the build folder.
find_package(GTest QUIET)
if(NOT GTest_FOUND)
  include(FetchContent)
  set(INSTALL_GTEST OFF)
  FetchContent_Declare(googletest
    GIT_REPOSITORY https://github.com/google/googletest.git
    GIT_TAG 52eb8108c5bdec04579160ae17225d66034bd723)  # v1.17.0
  FetchContent_MakeAvailable(googletest)
endif()
enable_testing()
include(GoogleTest)
file(GLOB tests CONFIGURE_DEPENDS tests/csrc/test_*.cpp)
foreach(test ${tests})
  string(REGEX REPLACE ".*/test_(.*)\\.cpp$" "\\1" name ${test})
  add_executable(test_${name} ${test} tests/csrc/main.cpp)
  target_link_libraries(test_${name} PRIVATE oneshot_kernels GTest::gtest)
  target_include_directories(test_${name} PRIVATE tests/csrc)
  # Every level the machine has; a level it lacks is skipped (exit code 77).
  foreach(level scalar avx2 avx512)
    gtest_discover_tests(test_${name} TEST_PREFIX "${level}." DISCOVERY_MODE PRE_TEST
      PROPERTIES ENVIRONMENT "ONESHOT_CPU_ISA=${level}" SKIP_RETURN_CODE 77)
  endforeach()
endforeach()
