// torch ops of the `logprob` family on CUDA tensors (stable ABI only).
#include "logprob/cuda/logprob.cuh"

#include <optional>
#include <tuple>
#include <vector>

#include "logprob/torch/input.h"
#include "torch/cuda_stream.h"

namespace oneshot {
namespace {

std::tuple<Tensor, Tensor, Tensor> forward(const Tensor& logits, const Tensor& targets,
                                           const std::optional<Tensor>& mask,
                                           const std::optional<Tensor>& keep_mask,
                                           double temperature, bool /*inplace_backward*/) {
  const Input in = make_input(On::kCuda, logits, targets, mask, keep_mask, temperature);
  const OnStreamOf stream(logits);
  const ScalarType real = real_type(logits);
  std::vector<int64_t> sizes = leading_sizes(logits);
  Tensor entropy = torch::stable::new_empty(logits, sizes, real);
  sizes.push_back(cpu::kLogprobStats);
  Tensor stats = torch::stable::new_empty(logits, sizes, real);
  Tensor logprobs = torch::stable::new_empty(logits, targets.sizes(), real);
  const int64_t rows = row_count(in.logits);
  const Tensor workspace =
      device_bytes(logits, cuda::logprob_workspace(in.pointers.dtype, rows, in.pointers.vocab));
  const cpu::LogprobForward args{in.pointers, logprobs.mutable_data_ptr(),
                                 entropy.mutable_data_ptr(), stats.mutable_data_ptr()};
  check_launch(cuda::logprob_forward(args, rows, workspace.mutable_data_ptr(), stream.get()),
               "token_logprobs_and_entropy");
  return {logprobs, entropy, stats};
}

void backward_into(const std::optional<Tensor>& grad_logprobs,
                   const std::optional<Tensor>& grad_entropy, const Input& in,
                   const Tensor& logprobs, const Tensor& stats, void* grad_logits,
                   const Rows& grad_rows) {
  const OnStreamOf stream(in.logits);
  const BackwardInput b = make_backward(On::kCuda, grad_logprobs, grad_entropy, in, logprobs, stats,
                                        grad_logits, grad_rows);
  check_launch(cuda::logprob_backward(b.pointers, row_count(in.logits), stream.get()),
               "token_logprobs_and_entropy_backward");
}

Tensor backward(const std::optional<Tensor>& grad_logprobs,
                const std::optional<Tensor>& grad_entropy, const Tensor& logits,
                const Tensor& targets, const std::optional<Tensor>& mask,
                const std::optional<Tensor>& keep_mask, const Tensor& logprobs, const Tensor& stats,
                double temperature) {
  const Input in = make_input(On::kCuda, logits, targets, mask, keep_mask, temperature);
  Tensor grad = torch::stable::new_empty(logits, logits.sizes());
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
  const Input in = make_input(On::kCuda, logits, targets, mask, keep_mask, temperature);
  check_overwritable(in, logits);
  backward_into(grad_logprobs, grad_entropy, in, logprobs, stats, logits.mutable_data_ptr(),
                in.pointers.rows);
}

}  // namespace
}  // namespace oneshot

STABLE_TORCH_LIBRARY_IMPL(oneshot, CUDA, m) {
  m.impl("token_logprobs_and_entropy", TORCH_BOX(&oneshot::forward));
  m.impl("token_logprobs_and_entropy_backward", TORCH_BOX(&oneshot::backward));
  m.impl("token_logprobs_and_entropy_backward_", TORCH_BOX(&oneshot::backward_inplace));
}
