// Exit code 77 tells ctest "skipped": this machine lacks the instruction-set level asked for.
#include <gtest/gtest.h>

#include <cstdio>
#include <exception>

#include "cpu/isa.h"

int main(int argc, char** argv) {
  ::testing::InitGoogleTest(&argc, argv);
  try {
    oneshot::cpu::isa();
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 77;
  }
  return RUN_ALL_TESTS();
}
