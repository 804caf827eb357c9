// The two functors of common/parallel.h on torch's threads.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <atomic>

#include "common/parallel.h"

namespace oneshot {

struct TorchThreads {
  template <typename Body>
  void operator()(int64_t begin, int64_t end, int64_t grain, const Body& body) const {
    torch::stable::parallel_for(begin, end, grain, body);
  }
};

// Tasks are handed out one by one, as they may be of uneven length.
inline Workers torch_workers() {
  Workers workers;
  workers.threads = int(torch::stable::get_num_threads());
  workers.run = [](int64_t count, const std::function<void(int64_t)>& body) {
    std::atomic<int64_t> next{0};
    torch::stable::parallel_for(0, count, 1, [&](int64_t, int64_t) {
      for (int64_t i; (i = next.fetch_add(1)) < count;) body(i);
    });
  };
  return workers;
}

}  // namespace oneshot
