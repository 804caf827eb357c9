// torch ops of the `logprob` family on CPU tensors (stable ABI only).
#include "logprob/cpu/logprob.h"

#include <atomic>

#include "logprob/torch/ops.h"
#include "torch/parallel.h"

namespace oneshot {
namespace {

// Runs `kernel(begin, end)` over all rows; a row with a bad target becomes an error here, because
// nothing may be thrown across the threads.
template <typename Kernel>
void for_rows(const LogprobInput& in, int64_t rows, const Kernel& kernel) {
  std::atomic<int64_t> first_bad{rows};
  TorchThreads{}(0, rows, grain_of(in.vocab), [&](int64_t begin, int64_t end) {
    const int64_t bad = kernel(begin, end);
    int64_t seen = first_bad.load();
    while (bad >= 0 && bad < seen && !first_bad.compare_exchange_weak(seen, bad)) {
    }
  });
  const int64_t row = first_bad.load();
  if (row == rows) return;
  for (int64_t j = 0; j < in.targets_per_row; ++j) {
    const int64_t target = in.targets[row * in.targets_per_row + j];
    if (target < 0 || target >= in.vocab) {
      fail("targets must lie in [0, ", in.vocab, "), got ", target, " in row ", row,
           " (rows with mask False are not checked)");
    }
  }
}

struct Cpu {
  static constexpr On kOn = On::kCpu;
  explicit Cpu(const Tensor&) {}

  void forward(const LogprobForward& args, int64_t rows) const {
    for_rows(args.input, rows,
             [&](int64_t begin, int64_t end) { return cpu::logprob_forward(args, begin, end); });
  }

  void backward(const LogprobBackward& args, int64_t rows) const {
    for_rows(args.input, rows,
             [&](int64_t begin, int64_t end) { return cpu::logprob_backward(args, begin, end); });
  }
};

}  // namespace
}  // namespace oneshot

STABLE_TORCH_LIBRARY_IMPL(oneshot, CPU, m) { oneshot::register_logprob<oneshot::Cpu>(m); }
