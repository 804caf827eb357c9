// Instruction-set level: found once at first use, capped by ONESHOT_CPU_ISA.
#pragma once

#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
#define ONESHOT_X86 1
#else
#define ONESHOT_X86 0
#endif

namespace oneshot::cpu {

enum class Isa : int { kScalar = 0, kAvx2 = 1, kAvx512 = 2 };

// The best level of this machine, whatever the environment says.
Isa best_isa();

// The level in use: best_isa(), or what ONESHOT_CPU_ISA=scalar|avx2|avx512 asks for.
// Throws std::runtime_error for an unknown name or a level this machine lacks.
Isa isa();

const char* isa_name(Isa level);

}  // namespace oneshot::cpu

// Calls the copy of `function` compiled for the level in use (see foreach_isa.h).
#if ONESHOT_X86
#define ONESHOT_DISPATCH_ISA(function, ...)                   \
  do {                                                        \
    switch (::oneshot::cpu::isa()) {                          \
      case ::oneshot::cpu::Isa::kAvx512:                      \
        return ::oneshot::cpu::avx512::function(__VA_ARGS__); \
      case ::oneshot::cpu::Isa::kAvx2:                        \
        return ::oneshot::cpu::avx2::function(__VA_ARGS__);   \
      case ::oneshot::cpu::Isa::kScalar:                      \
        break;                                                \
    }                                                         \
    return ::oneshot::cpu::scalar::function(__VA_ARGS__);     \
  } while (false)
#else
#define ONESHOT_DISPATCH_ISA(function, ...) return ::oneshot::cpu::scalar::function(__VA_ARGS__)
#endif
