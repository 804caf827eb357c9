// The scheduler: fibers, barriers and warp collectives. See engine.h.
#include "engine.h"

#include <cstdarg>
#include <cstdio>
#include <cstring>
#include <vector>

#include "fiber.h"

namespace emu {
namespace {

enum class State { kRunnable, kAtBlockBarrier, kAtWarp, kDone };

struct Place {
  const char* file = "";
  int line = 0;
  bool operator==(const Place& o) const { return line == o.line && !strcmp(file, o.file); }
};

struct Thread {
  Fiber fiber;
  Index index;
  State state = State::kDone;
  Place place;
  unsigned mask = 0;
  uint64_t value = 0;
  uint64_t received[32];
};

struct StaticShared {
  Place place;
  size_t offset;
};

struct Engine {
  std::vector<Thread*> threads;  // kept: their stacks are reused
  std::vector<uint32_t> warp_epoch;
  std::vector<int> runnable;
  std::vector<StaticShared> statics;
  const std::function<void()>* body = nullptr;
  LaunchShape shape;
  Index block;
  int count = 0, current = -1, at_barrier = 0;
  size_t shared_used = 0;
  uint32_t launch = 0, block_number = 0, block_serial = 0, block_epoch = 0;
  uint64_t random = 0x9E3779B97F4A7C15u;
  bool failed = false;
  char message[1024] = "";
} engine;

Thread& current() { return *engine.threads[size_t(engine.current)]; }

void leave(State state) {
  current().state = state;
  current().fiber.leave();
}

void resume(int id) {
  engine.threads[size_t(id)]->state = State::kRunnable;
  engine.runnable.push_back(id);
}

void run_thread() {
  current().fiber.arrived();
  (*engine.body)();
  leave(State::kDone);
  abort();  // a finished thread is never entered again
}

// Nobody can go on: says who waits where.
void report_stuck() {
  int done = 0;
  const Thread* block = nullptr;
  const Thread* warp = nullptr;
  int warp_thread = 0;
  for (int i = 0; i < engine.count; ++i) {
    const Thread& t = *engine.threads[size_t(i)];
    done += t.state == State::kDone;
    if (t.state == State::kAtBlockBarrier) block = &t;
    if (t.state == State::kAtWarp) warp = &t, warp_thread = i;
  }
  if (warp != nullptr) {
    report(
        "divergent warp operation: thread %d waits at %s:%d for the lanes of mask 0x%08x, not "
        "all of which come (%d of %d threads have returned)",
        warp_thread, warp->place.file, warp->place.line, warp->mask, done, engine.count);
  } else {
    report("divergent barrier: %d of %d threads wait at %s:%d, %d have returned", engine.at_barrier,
           engine.count, block->place.file, block->place.line, done);
  }
}

void run_block() {
  engine.at_barrier = 0;
  engine.block_epoch = 0;
  ++engine.block_serial;
  engine.statics.clear();
  engine.warp_epoch.assign(size_t(engine.count + 31) / 32, 0);
  reset_shared();
  engine.shared_used = (engine.shape.dynamic_shared + 15) / 16 * 16;
  grow_shared(0, engine.shape.dynamic_shared);
  engine.runnable.clear();
  for (int i = 0; i < engine.count; ++i) {
    engine.threads[size_t(i)]->fiber.reset(run_thread);
    resume(i);
  }
  int done = 0;
  while (!engine.failed && done < engine.count) {
    if (engine.runnable.empty()) {
      report_stuck();
      return;
    }
    const size_t pick = random_below(engine.runnable.size());
    const int id = engine.runnable[pick];
    engine.runnable[pick] = engine.runnable.back();
    engine.runnable.pop_back();
    engine.current = id;
    current().fiber.enter();
    engine.current = -1;
    const State state = engine.threads[size_t(id)]->state;
    if (state == State::kDone) ++done;
  }
}

}  // namespace

void seed(uint64_t value) {
  engine.random = value * 0x9E3779B97F4A7C15u + 0x632BE59BD9B4E019u;
  engine.failed = false;
  engine.message[0] = 0;
}

uint64_t random_below(uint64_t bound) {
  engine.random ^= engine.random << 13;
  engine.random ^= engine.random >> 7;
  engine.random ^= engine.random << 17;
  return (engine.random >> 11) % bound;
}

const Index& thread_index() { return current().index; }
const Index& block_index() { return engine.block; }
const LaunchShape& shape() { return engine.shape; }
const char* error() { return engine.message; }
int lane_index() { return engine.current % 32; }

void report(const char* format, ...) {
  if (!engine.failed) {
    va_list arguments;
    va_start(arguments, format);
    const int n = vsnprintf(engine.message, sizeof(engine.message), format, arguments);
    va_end(arguments);
    if (engine.current >= 0 && n > 0 && size_t(n) < sizeof(engine.message)) {
      const Index t = current().index, b = engine.block;
      snprintf(engine.message + n, sizeof(engine.message) - size_t(n),
               " [block (%u, %u, %u), thread (%u, %u, %u)]", b.x, b.y, b.z, t.x, t.y, t.z);
    }
    engine.failed = true;
  }
  if (engine.current >= 0) leave(State::kDone);
}

bool launch(const LaunchShape& shape, const std::function<void()>& body) {
  if (engine.failed) return false;  // as on a device: after an error nothing runs any more
  engine.shape = shape;
  engine.body = &body;
  ++engine.launch;
  const Index g = shape.grid, b = shape.block;
  const uint64_t threads = uint64_t(b.x) * b.y * b.z;
  const uint64_t blocks = uint64_t(g.x) * g.y * g.z;
  if (threads == 0 || threads > 1024 || b.z > 64 || blocks == 0 || g.x > 0x7FFFFFFFu ||
      g.y > 65535 || g.z > 65535) {
    report("invalid launch: grid (%u, %u, %u), block (%u, %u, %u)", g.x, g.y, g.z, b.x, b.y, b.z);
    return false;
  }
  if (shape.dynamic_shared > shared_capacity()) {
    report("invalid launch: %zu bytes of shared memory", shape.dynamic_shared);
    return false;
  }
  engine.count = int(threads);
  while (engine.threads.size() < threads) engine.threads.push_back(new Thread);
  for (unsigned i = 0; i < threads; ++i) {
    engine.threads[i]->index = {i % b.x, i / b.x % b.y, i / b.x / b.y};
  }
  std::vector<uint32_t> order(blocks);
  for (uint32_t i = 0; i < blocks; ++i) order[i] = i;
  for (uint64_t i = blocks; i > 1; --i) std::swap(order[i - 1], order[random_below(i)]);
  for (const uint32_t i : order) {
    engine.block_number = i;
    engine.block = {i % g.x, i / g.x % g.y, i / g.x / g.y};
    run_block();
    if (engine.failed) return false;
  }
  return true;
}

void block_barrier(const char* file, int line) {
  const Place here{file, line};
  current().place = here;
  for (int i = 0; engine.at_barrier > 0 && i < engine.count; ++i) {
    const Thread& t = *engine.threads[size_t(i)];
    if (t.state == State::kAtBlockBarrier && !(t.place == here)) {
      report("divergent barrier: one thread waits at %s:%d, another at %s:%d", t.place.file,
             t.place.line, file, line);
    }
    if (t.state == State::kAtBlockBarrier) break;
  }
  if (++engine.at_barrier < engine.count) {
    leave(State::kAtBlockBarrier);
    return;
  }
  engine.at_barrier = 0;
  ++engine.block_epoch;
  for (int i = 0; i < engine.count; ++i) {
    if (i != engine.current) resume(i);
  }
  maybe_yield();
}

void warp_exchange(unsigned mask, uint64_t value, uint64_t (&received)[32], bool orders_memory,
                   const char* file, int line) {
  const int lane = engine.current % 32, first = engine.current - lane;
  Thread& me = current();
  me.place = {file, line};
  me.mask = mask;
  me.value = value;
  if (!(mask >> lane & 1u)) {
    report("warp operation at %s:%d by lane %d, which mask 0x%08x leaves out", file, line, lane,
           mask);
  }
  bool all = true;
  for (int i = 0; i < 32; ++i) {
    if (!(mask >> i & 1u) || i == lane) continue;
    if (first + i >= engine.count) {
      report("warp operation at %s:%d with mask 0x%08x: the block ends before lane %d", file, line,
             mask, i);
    }
    const Thread& t = *engine.threads[size_t(first + i)];
    all = all && t.state == State::kAtWarp && t.mask == mask && t.place == me.place;
  }
  if (!all) {
    leave(State::kAtWarp);
  } else {
    // Only a barrier of the whole warp is taken to order memory between its lanes.
    if (orders_memory && mask == 0xFFFFFFFFu) ++engine.warp_epoch[size_t(first) / 32];
    for (int i = 0; i < 32; ++i) {
      if (!(mask >> i & 1u)) continue;
      Thread& t = *engine.threads[size_t(first + i)];
      for (int j = 0; j < 32; ++j) {
        const bool there = mask >> j & 1u;
        t.received[j] = there ? engine.threads[size_t(first + j)]->value : ~uint64_t{0};
      }
      if (i != lane) resume(first + i);
    }
  }
  memcpy(received, me.received, sizeof(received));
}

void* dynamic_shared() { return shared_base(); }

void* static_shared(size_t bytes, const char* file, int line) {
  const Place here{file, line};
  for (const StaticShared& s : engine.statics) {
    if (s.place == here) return static_cast<char*>(shared_base()) + s.offset;
  }
  const size_t offset = engine.shared_used + 64;  // room in which nothing may be touched
  engine.shared_used = (offset + bytes + 15) / 16 * 16;
  if (engine.shared_used > shared_capacity()) report("too much shared memory at %s:%d", file, line);
  grow_shared(offset, bytes);
  engine.statics.push_back({here, offset});
  return static_cast<char*>(shared_base()) + offset;
}

bool in_thread(Accessor& a) {
  if (engine.current < 0) return false;
  a = {engine.launch,
       engine.block_number,
       engine.block_serial,
       engine.block_epoch,
       engine.warp_epoch[size_t(engine.current) / 32],
       uint16_t(engine.current)};
  return true;
}

void maybe_yield() {
  if (engine.current < 0 || random_below(64) != 0) return;
  engine.runnable.push_back(engine.current);
  leave(State::kRunnable);
}

}  // namespace emu
