// C entry points of the `logprob` launchers, for ctypes. `strides` are those of a 2-d matrix of
// rows: logits, keep-mask, gradient.
#include "logprob/cuda/logprob.cuh"

using namespace oneshot;

namespace {

LogprobInput input(int dtype, const void* logits, const int64_t* shape, const int64_t* targets,
                   const bool* mask, const bool* keep, double temperature) {
  LogprobInput in{};
  in.dtype = DType(dtype);
  in.logits = logits;
  in.rows.push(shape[0], shape[3]);
  in.vocab = shape[1];
  in.targets = targets;
  in.targets_per_row = shape[2];
  in.mask = mask;
  in.keep_mask = keep;
  in.keep_rows.push(shape[0], shape[4]);
  in.temperature = temperature;
  return in;
}

}  // namespace

extern "C" int64_t emu_logprob_workspace(int dtype, int64_t rows, int64_t vocab) {
  return cuda::logprob_workspace(DType(dtype), rows, vocab);
}

extern "C" int emu_logprob_forward(int dtype, const void* logits, const int64_t* shape,
                                   const int64_t* targets, const bool* mask, const bool* keep,
                                   double temperature, void* logprobs, void* entropy, void* stats,
                                   void* workspace) {
  const LogprobForward args{input(dtype, logits, shape, targets, mask, keep, temperature), logprobs,
                            entropy, stats};
  return int(cuda::logprob_forward(args, shape[0], workspace, nullptr));
}

extern "C" int emu_logprob_backward(int dtype, const void* logits, const int64_t* shape,
                                    const int64_t* targets, const bool* mask, const bool* keep,
                                    double temperature, const void* grad_logprobs,
                                    const void* grad_entropy, const void* logprobs,
                                    const void* stats, void* grad) {
  LogprobBackward args{input(dtype, logits, shape, targets, mask, keep, temperature),
                       grad_logprobs,
                       grad_entropy,
                       logprobs,
                       stats,
                       grad,
                       {}};
  args.grad_rows.push(shape[0], shape[5]);
  return int(cuda::logprob_backward(args, shape[0], nullptr));
}
