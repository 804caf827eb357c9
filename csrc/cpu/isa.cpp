#include "cpu/isa.h"

#include <cstdlib>
#include <stdexcept>
#include <string>

#if ONESHOT_X86
#include <cpuid.h>
#endif

namespace oneshot::cpu {

const char* isa_name(Isa level) {
  switch (level) {
    case Isa::kAvx512:
      return "avx512";
    case Isa::kAvx2:
      return "avx2";
    case Isa::kScalar:
      break;
  }
  return "scalar";
}

#if ONESHOT_X86
namespace {

// Clang before 17 rejects __builtin_cpu_supports("f16c").
bool has_f16c() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  return __get_cpuid(1, &a, &b, &c, &d) != 0 && (c & bit_F16C) != 0;
}

}  // namespace
#endif

Isa best_isa() {
#if ONESHOT_X86
  // __builtin_cpu_supports also checks that the operating system saves the registers.
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) {
    return Isa::kAvx512;
  }
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c()) {
    return Isa::kAvx2;
  }
#endif
  return Isa::kScalar;
}

namespace {

Isa choose() {
  const Isa best = best_isa();
  const char* wish = std::getenv("ONESHOT_CPU_ISA");
  if (wish == nullptr || *wish == '\0') return best;
  for (Isa level : {Isa::kScalar, Isa::kAvx2, Isa::kAvx512}) {
    if (std::string(wish) != isa_name(level)) continue;
    if (level > best) {
      throw std::runtime_error(std::string("ONESHOT_CPU_ISA=") + wish +
                               ": this machine offers at most " + isa_name(best));
    }
    return level;
  }
  throw std::runtime_error(std::string("ONESHOT_CPU_ISA must be scalar, avx2 or avx512, got '") +
                           wish + "'");
}

}  // namespace

Isa isa() {
  static const Isa level = choose();
  return level;
}

}  // namespace oneshot::cpu
