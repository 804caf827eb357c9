// torch ops of the `logprob` family on CUDA tensors (stable ABI only).
#include "logprob/cuda/logprob.cuh"

#include "logprob/torch/ops.h"
#include "torch/cuda_stream.h"

namespace oneshot {
namespace {

class Cuda {
 public:
  static constexpr On kOn = On::kCuda;
  explicit Cuda(const Tensor& logits) : logits_(logits), stream_(logits) {}

  void forward(const LogprobForward& args, int64_t rows) const {
    const Tensor workspace =
        device_bytes(logits_, cuda::logprob_workspace(args.input.dtype, rows, args.input.vocab));
    check_launch(cuda::logprob_forward(args, rows, workspace.mutable_data_ptr(), stream_.get()),
                 "token_logprobs_and_entropy");
  }

  void backward(const LogprobBackward& args, int64_t rows) const {
    check_launch(cuda::logprob_backward(args, rows, stream_.get()),
                 "token_logprobs_and_entropy_backward");
  }

 private:
  const Tensor& logits_;
  OnStreamOf stream_;
};

}  // namespace
}  // namespace oneshot

STABLE_TORCH_LIBRARY_IMPL(oneshot, CUDA, m) { oneshot::register_logprob<oneshot::Cuda>(m); }
