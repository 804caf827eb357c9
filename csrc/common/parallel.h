// How a driver splits independent rows: the torch ops pass torch's thread pool, NumPy and the C++
// tests pass Serial.
#pragma once

#include <cstdint>

namespace oneshot {

struct Serial {
  template <typename Body>
  void operator()(int64_t begin, int64_t end, int64_t /*grain*/, const Body& body) const {
    if (begin < end) body(begin, end);
  }
};

}  // namespace oneshot
