// The forced level is really the active one.
#include <gtest/gtest.h>

#include <cstdlib>
#include <string>

#include "cpu/isa.h"

using oneshot::cpu::Isa;

TEST(Isa, ForcedLevelIsActive) {
  const char* wish = std::getenv("ONESHOT_CPU_ISA");
  const std::string expected =
      wish != nullptr ? wish : oneshot::cpu::isa_name(oneshot::cpu::best_isa());
  EXPECT_EQ(oneshot::cpu::isa_name(oneshot::cpu::isa()), expected);
  EXPECT_LE(oneshot::cpu::isa(), oneshot::cpu::best_isa());
}
