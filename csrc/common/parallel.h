// How work is split over threads. A kernel that cuts its items into ranges takes any functor
// `parallel(begin, end, grain, body)`: torch/parallel.h has the one on torch's threads, NumPy and
// the C++ tests pass Serial. A kernel whose tasks are uneven takes Workers.
#pragma once

#include <cstdint>
#include <functional>

namespace oneshot {

// Fewer elements than this are not worth another thread.
inline constexpr int64_t kGrainElements = 32768;

// How many items, of so many elements each, make up the smallest range that a thread gets.
inline int64_t grain_of(int64_t elements) {
  return elements < 1 ? kGrainElements : elements < kGrainElements ? kGrainElements / elements : 1;
}

struct Serial {
  template <typename Body>
  void operator()(int64_t begin, int64_t end, int64_t /*grain*/, const Body& body) const {
    if (begin < end) body(begin, end);
  }
};

// run(n, body) calls body(i) once for every i in [0, n), in any order, on up to `threads` threads,
// and returns when all are done.
struct Workers {
  int threads = 1;
  std::function<void(int64_t, const std::function<void(int64_t)>&)> run =
      [](int64_t count, const std::function<void(int64_t)>& body) {
        for (int64_t i = 0; i < count; ++i) body(i);
      };
};

}  // namespace oneshot
