// Switching stacks. x86-64 has its own few instructions: ucontext makes two system calls a switch,
// and a warp reduction takes 160 of them.
#pragma once

#include <sys/mman.h>

#include <cstddef>
#include <cstdint>
#include <cstdlib>

#if !defined(__x86_64__)
#include <ucontext.h>
#endif
#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

namespace emu {

inline constexpr size_t kStackBytes = size_t{1} << 17;

#if defined(__x86_64__)
extern "C" void emu_switch(void** save, void* restore);
__asm__(
    ".text\n"
    ".local emu_switch\n"
    ".type emu_switch,@function\n"
    "emu_switch:\n"
    "  pushq %rbp\n  pushq %rbx\n  pushq %r12\n  pushq %r13\n  pushq %r14\n  pushq %r15\n"
    "  movq %rsp, (%rdi)\n"
    "  movq %rsi, %rsp\n"
    "  popq %r15\n  popq %r14\n  popq %r13\n  popq %r12\n  popq %rbx\n  popq %rbp\n"
    "  ret\n"
    ".size emu_switch, .-emu_switch\n");
#endif

// A stack that runs `entry` from the start each time it is reset.
class Fiber {
 public:
  void reset(void (*entry)()) {
    if (stack_ == nullptr) {
      // The lowest page stays closed: running off the stack is a fault, not silent damage.
      stack_ = static_cast<char*>(mmap(nullptr, kStackBytes, PROT_NONE,
                                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
      if (stack_ == MAP_FAILED ||
          mprotect(stack_ + 4096, kStackBytes - 4096, PROT_READ | PROT_WRITE) != 0) {
        abort();
      }
    }
#if defined(__SANITIZE_ADDRESS__)
    // A thread that was stopped by an error has left the red zones of its frames behind.
    __asan_unpoison_memory_region(stack_ + 4096, kStackBytes - 4096);
    fake_ = nullptr;
#endif
#if defined(__x86_64__)
    auto** top = reinterpret_cast<void**>(stack_ + kStackBytes) - 2;
    *--top = nullptr;  // the return address of `entry`, which never returns
    *--top = reinterpret_cast<void*>(entry);
    top -= 6;
    for (int i = 0; i < 6; ++i) top[i] = nullptr;
    context_ = top;
#else
    getcontext(&context_);
    context_.uc_stack.ss_sp = stack_ + 4096;
    context_.uc_stack.ss_size = kStackBytes - 4096;
    context_.uc_link = nullptr;
    makecontext(&context_, entry, 0);
#endif
  }

  // From the scheduler into this fiber, until it calls leave().
  void enter() {
#if defined(__SANITIZE_ADDRESS__)
    void* fake = nullptr;
    __sanitizer_start_switch_fiber(&fake, stack_ + 4096, kStackBytes - 4096);
#endif
#if defined(__x86_64__)
    emu_switch(&scheduler_, context_);
#else
    swapcontext(&scheduler_, &context_);
#endif
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(fake, nullptr, nullptr);
#endif
  }

  // First thing on the fiber's stack after each enter().
  void arrived() {
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(fake_, &scheduler_stack_, &scheduler_bytes_);
#endif
  }

  void leave() {
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_start_switch_fiber(&fake_, scheduler_stack_, scheduler_bytes_);
#endif
#if defined(__x86_64__)
    emu_switch(&context_, scheduler_);
#else
    swapcontext(&context_, &scheduler_);
#endif
    arrived();
  }

 private:
  char* stack_ = nullptr;
#if defined(__x86_64__)
  void* context_ = nullptr;
  void* scheduler_ = nullptr;
#else
  ucontext_t context_, scheduler_;
#endif
#if defined(__SANITIZE_ADDRESS__)
  void* fake_ = nullptr;
  const void* scheduler_stack_ = nullptr;
  size_t scheduler_bytes_ = 0;
#endif
};

}  // namespace emu
