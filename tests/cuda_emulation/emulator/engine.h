// Execution model of one CUDA block at a time on one CPU thread: every thread of the block is a
// fiber, and which fiber runs next is drawn at random between barriers and, in the checked build,
// at memory accesses. Blocks run one after the other in random order.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>

namespace emu {

struct Index {
  unsigned x = 0, y = 0, z = 0;
};

struct LaunchShape {
  Index grid, block;
  size_t dynamic_shared = 0;
};

// What a running thread sees of itself.
const Index& thread_index();
const Index& block_index();
const LaunchShape& shape();

// Runs the grid; false if a thread broke the rules of the model, with the reason in error().
bool launch(const LaunchShape& shape, const std::function<void()>& body);
const char* error();
// The first reason stays. Called from a thread of a block it does not return.
void report(const char* format, ...) __attribute__((format(printf, 1, 2)));

// ---- called by the device functions of cuda_runtime.h

void block_barrier(const char* file, int line);
// Waits until every lane of `mask` stands at the same place, then hands out what they brought.
// `orders_memory`: __syncwarp does, shuffles and votes do not.
void warp_exchange(unsigned mask, uint64_t value, uint64_t (&received)[32], bool orders_memory,
                   const char* file, int line);
int lane_index();
// Shared memory of the block: the same place for every thread that asks at the same line.
void* static_shared(size_t bytes, const char* file, int line);
void* dynamic_shared();
void check_aligned(const void* address, size_t alignment);
void atomic_access(const void* address, size_t bytes);

// ---- between engine.cpp and memory.cpp

// Who accesses memory now, and what it has waited for.
struct Accessor {
  uint32_t launch, block, block_serial, block_epoch, warp_epoch;
  uint16_t thread;
};
bool in_thread(Accessor& accessor);
void maybe_yield();
void seed(uint64_t value);  // and forget the last error
uint64_t random_below(uint64_t bound);

void* shared_base();
size_t shared_capacity();
// Makes [0, bytes) of shared memory exist, poisoned, for the next block; the rest does not exist.
void reset_shared();
void grow_shared(size_t offset, size_t bytes);

}  // namespace emu
