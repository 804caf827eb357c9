// Device memory of the emulator: one arena, in which every byte knows whether it exists, whether it
// has been written, and who touched it last.
//
// The kernels are compiled with -fsanitize=thread for its instrumentation alone: every access calls
// a __tsan_ function, and those are ours (below). So an access outside a buffer, a read of memory
// nobody wrote, a write to an input, a misaligned vector and a race between two threads are errors
// whatever values they lead to. The other build compiles with AddressSanitizer instead.
#include <sys/mman.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "engine.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#else
#define ASAN_POISON_MEMORY_REGION(address, bytes) ((void)(address), (void)(bytes))
#define ASAN_UNPOISON_MEMORY_REGION(address, bytes) ((void)(address), (void)(bytes))
#endif

namespace emu {
namespace {

constexpr size_t kArenaBytes = size_t{1} << 28;
constexpr size_t kSharedBytes = 227 * 1024;  // what a block may ask for on sm_90
constexpr size_t kGap = 256;                 // between buffers; touching it is an error

enum ByteState : uint8_t { kAbsent, kUnwritten, kWritten, kReadOnly };

// How many threads an entry stands for: writes by one; reads may be merged.
enum Who : uint8_t { kNobody, kThread, kWarp, kBlock, kGrid };

struct Access {
  uint32_t generation;  // launch, or block for shared memory: older accesses are ordered before
  uint32_t block, block_epoch, warp_epoch;
  uint16_t thread;
  Who who;
  bool atomic;
};

struct Cell {
  Access write, read;
};

template <typename T>
T* reserve(size_t count) {
  void* p = mmap(nullptr, count * sizeof(T), PROT_READ | PROT_WRITE,
                 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (p == MAP_FAILED) abort();
  return static_cast<T*>(p);
}

struct Memory {
  char* arena = reserve<char>(kArenaBytes);
  uint8_t* state = reserve<uint8_t>(kArenaBytes);
  Cell* cells = reserve<Cell>(kArenaBytes);
  size_t used = 0;

  Memory() {
    ASAN_POISON_MEMORY_REGION(arena, kArenaBytes);
    used = kSharedBytes + kGap;
  }
} memory;

// Whether everything the entry stands for happened before what thread `a` does now.
bool ordered(const Access& e, const Accessor& a, uint32_t generation) {
  if (e.who == kNobody || e.generation != generation) return true;
  if (e.who == kGrid || e.block != a.block) return false;
  if (e.who == kThread && e.thread == a.thread) return true;
  if (e.block_epoch < a.block_epoch) return true;
  return e.who != kBlock && e.thread / 32 == a.thread / 32 && e.warp_epoch < a.warp_epoch;
}

void merge_read(Access& e, const Accessor& a, uint32_t generation, bool atomic) {
  const Access mine{generation, a.block, a.block_epoch, a.warp_epoch, a.thread, kThread, atomic};
  if (ordered(e, a, generation)) {
    e = mine;
    return;
  }
  const bool same_block = e.who != kGrid && e.block == a.block;
  const bool same_warp = same_block && e.who != kBlock && e.thread / 32 == a.thread / 32;
  e.who = same_warp ? kWarp : same_block ? kBlock : kGrid;
  e.atomic = e.atomic && atomic;
  if (same_block) {
    e.block_epoch = a.block_epoch;
    e.warp_epoch = a.warp_epoch;
  }
}

void access(const void* address, size_t bytes, bool write, bool atomic) {
  const auto* p = static_cast<const char*>(address);
  if (p < memory.arena || p >= memory.arena + kArenaBytes) return;  // stack, constants
  Accessor a;
  if (!in_thread(a)) {
    report("host code touches device memory");
    return;
  }
  const auto first = size_t(p - memory.arena);
  const bool shared = first < kSharedBytes;
  const char* where = shared ? "shared" : "global";
  const uint32_t generation = shared ? a.block_serial : a.launch;
  for (size_t i = first; i < first + bytes; ++i) {
    uint8_t& state = memory.state[i];
    Cell& cell = memory.cells[i];
    if (state == kAbsent) {
      report("out of bounds: %s of %zu bytes of %s memory", write ? "write" : "read", bytes, where);
    }
    if (!write && state == kUnwritten) {
      report("read of %s memory that nobody wrote (%zu bytes)", where, bytes);
    }
    if (write && state == kReadOnly) report("write to an input");
    if (!(atomic && cell.write.atomic) && !ordered(cell.write, a, generation)) {
      report("race on %s memory: %s after a write by thread %u of block %u", where,
             write ? "write" : "read", unsigned(cell.write.thread), cell.write.block);
    }
    if (write && !(atomic && cell.read.atomic) && !ordered(cell.read, a, generation)) {
      report("race on %s memory: write after a read by thread %u of block %u", where,
             unsigned(cell.read.thread), cell.read.block);
    }
    if (write) {
      cell.write = {generation, a.block, a.block_epoch, a.warp_epoch, a.thread, kThread, atomic};
      if (state == kUnwritten) state = kWritten;
    } else {
      merge_read(cell.read, a, generation, atomic);
    }
  }
  if (!atomic) maybe_yield();
}

void create(size_t offset, size_t bytes, ByteState state) {
  ASAN_UNPOISON_MEMORY_REGION(memory.arena + offset, bytes);
  if (state == kUnwritten) memset(memory.arena + offset, 0xFF, bytes);  // NaN in every float type
  memset(memory.state + offset, state, bytes);
}

}  // namespace

void* shared_base() { return memory.arena; }
size_t shared_capacity() { return kSharedBytes; }

void reset_shared() {
  ASAN_POISON_MEMORY_REGION(memory.arena, kSharedBytes);
  memset(memory.state, kAbsent, kSharedBytes);
}

void grow_shared(size_t offset, size_t bytes) { create(offset, bytes, kUnwritten); }

void check_aligned(const void* address, size_t alignment) {
  if (reinterpret_cast<uintptr_t>(address) % alignment != 0) {
    report("misaligned address of a %zu-byte vector", alignment);
  }
}

void atomic_access(const void* address, size_t bytes) { access(address, bytes, true, true); }

}  // namespace emu

// ---- for the tests, through ctypes

extern "C" {

// A buffer of exactly `bytes` bytes, 256-byte aligned. kind 0: an output, poisoned; 1: an input,
// which kernels may not write; 2: written already, may be overwritten.
void* emu_alloc(size_t bytes, int kind) {
  using namespace emu;
  const size_t offset = (memory.used + 255) / 256 * 256;
  if (offset + bytes + kGap > kArenaBytes) return nullptr;
  create(offset, bytes, kind == 0 ? kUnwritten : kWritten);
  if (kind == 1) memset(memory.state + offset, kReadOnly, bytes);
  memory.used = offset + bytes + kGap;
  return memory.arena + offset;
}

void emu_free_all() {
  using namespace emu;
  memset(memory.state, kAbsent, memory.used);
  memset(static_cast<void*>(memory.cells), 0, memory.used * sizeof(Cell));
  ASAN_POISON_MEMORY_REGION(memory.arena, memory.used);
  memory.used = kSharedBytes + kGap;
}

// How many bytes of a buffer no kernel has written.
size_t emu_unwritten(const void* p, size_t bytes) {
  const auto first = size_t(static_cast<const char*>(p) - emu::memory.arena);
  size_t count = 0;
  for (size_t i = first; i < first + bytes; ++i) count += emu::memory.state[i] == emu::kUnwritten;
  return count;
}

// Forgets the last error and draws the order of threads anew.
void emu_reset(uint64_t value) { emu::seed(value); }
const char* emu_error() { return emu::error(); }

// ---- what the compiler calls at every memory access of the kernels

#define EMU_ACCESS(n)                                                         \
  void __tsan_read##n(void* p) { emu::access(p, n, false, false); }           \
  void __tsan_write##n(void* p) { emu::access(p, n, true, false); }           \
  void __tsan_unaligned_read##n(void* p) { emu::access(p, n, false, false); } \
  void __tsan_unaligned_write##n(void* p) { emu::access(p, n, true, false); } \
  void __tsan_volatile_read##n(void* p) { emu::access(p, n, false, false); }  \
  void __tsan_volatile_write##n(void* p) { emu::access(p, n, true, false); }
EMU_ACCESS(1)
EMU_ACCESS(2)
EMU_ACCESS(4)
EMU_ACCESS(8)
EMU_ACCESS(16)
void __tsan_read_range(void* p, size_t n) { emu::access(p, n, false, false); }
void __tsan_write_range(void* p, size_t n) { emu::access(p, n, true, false); }
void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_vptr_update(void**, void*) {}
void __tsan_vptr_read(void**) {}
}
