// torch ops of the `logprob` family on CPU tensors (stable ABI only).
#include "logprob/contract.h"

#include <algorithm>
#include <atomic>
#include <optional>
#include <tuple>
#include <vector>

#include "logprob/torch/input.h"
#include "torch/huge_pages.h"

namespace oneshot {
namespace {

// Runs `kernel(begin, end)` over all rows; a row with a bad target becomes an error here, because
// nothing may be thrown across the threads.
template <typename Kernel>
void for_rows(const Input& in, const Kernel& kernel) {
  const int64_t rows = row_count(in.logits), k = in.pointers.targets_per_row;
  std::atomic<int64_t> first_bad{rows};
  const int64_t grain = std::max<int64_t>(1, 32768 / in.pointers.vocab);
  torch::stable::parallel_for(0, rows, grain, [&](int64_t begin, int64_t end) {
    const int64_t bad = kernel(begin, end);
    int64_t seen = first_bad.load();
    while (bad >= 0 && bad < seen && !first_bad.compare_exchange_weak(seen, bad)) {
    }
  });
  const int64_t row = first_bad.load();
  if (row == rows) return;
  for (int64_t j = 0; j < k; ++j) {
    const int64_t target = in.pointers.targets[row * k + j];
    if (target < 0 || target >= in.pointers.vocab) {
      fail("targets must lie in [0, ", in.pointers.vocab, "), got ", target, " in row ", row,
           " (rows with mask False are not checked)");
    }
  }
}

std::tuple<Tensor, Tensor, Tensor> forward(const Tensor& logits, const Tensor& targets,
                                           const std::optional<Tensor>& mask,
                                           const std::optional<Tensor>& keep_mask,
                                           double temperature, bool /*inplace_backward*/) {
  const Input in = make_input(On::kCpu, logits, targets, mask, keep_mask, temperature);
  const ScalarType real = real_type(logits);
  std::vector<int64_t> sizes = leading_sizes(logits);
  Tensor entropy = torch::stable::new_empty(logits, sizes, real);
  sizes.push_back(cpu::kLogprobStats);
  Tensor stats = torch::stable::new_empty(logits, sizes, real);
  Tensor logprobs = torch::stable::new_empty(logits, targets.sizes(), real);
  const cpu::LogprobForward args{in.pointers, logprobs.mutable_data_ptr(),
                                 entropy.mutable_data_ptr(), stats.mutable_data_ptr()};
  for_rows(in, [&](int64_t begin, int64_t end) { return cpu::logprob_forward(args, begin, end); });
  return {logprobs, entropy, stats};
}

void backward_into(const std::optional<Tensor>& grad_logprobs,
                   const std::optional<Tensor>& grad_entropy, const Input& in,
                   const Tensor& logprobs, const Tensor& stats, void* grad_logits,
                   const Rows& grad_rows) {
  const BackwardInput b = make_backward(On::kCpu, grad_logprobs, grad_entropy, in, logprobs, stats,
                                        grad_logits, grad_rows);
  for_rows(in, [&](int64_t begin, int64_t end) {
    return cpu::logprob_backward(b.pointers, begin, end);
  });
}

int64_t element_bytes(DType dtype) {
  switch (dtype) {
    case DType::kFloat64:
      return 8;
    case DType::kFloat32:
      return 4;
    case DType::kBFloat16:
    case DType::kFloat16:
      break;
  }
  return 2;
}

Tensor backward(const std::optional<Tensor>& grad_logprobs,
                const std::optional<Tensor>& grad_entropy, const Tensor& logits,
                const Tensor& targets, const std::optional<Tensor>& mask,
                const std::optional<Tensor>& keep_mask, const Tensor& logprobs, const Tensor& stats,
                double temperature) {
  const Input in = make_input(On::kCpu, logits, targets, mask, keep_mask, temperature);
  Tensor grad = torch::stable::new_empty(logits, logits.sizes());
  // Fresh memory costs more than computing the gradient (measured in docs/ops/logprob.md).
  prefer_huge_pages(grad.mutable_data_ptr(), grad.numel() * element_bytes(in.pointers.dtype));
  Rows rows;
  rows_of(grad, grad, rows);
  backward_into(grad_logprobs, grad_entropy, in, logprobs, stats, grad.mutable_data_ptr(), rows);
  return grad;
}

void backward_inplace(const std::optional<Tensor>& grad_logprobs,
                      const std::optional<Tensor>& grad_entropy, Tensor logits,
                      const Tensor& targets, const std::optional<Tensor>& mask,
                      const std::optional<Tensor>& keep_mask, const Tensor& logprobs,
                      const Tensor& stats, double temperature) {
  const Input in = make_input(On::kCpu, logits, targets, mask, keep_mask, temperature);
  check_overwritable(in, logits);
  backward_into(grad_logprobs, grad_entropy, in, logprobs, stats, logits.mutable_data_ptr(),
                in.pointers.rows);
}

}  // namespace
}  // namespace oneshot

STABLE_TORCH_LIBRARY_IMPL(oneshot, CPU, m) {
  m.impl("token_logprobs_and_entropy", TORCH_BOX(&oneshot::forward));
  m.impl("token_logprobs_and_entropy_backward", TORCH_BOX(&oneshot::backward));
  m.impl("token_logprobs_and_entropy_backward_", TORCH_BOX(&oneshot::backward_inplace));
}
