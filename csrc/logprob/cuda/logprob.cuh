// Log-probabilities of chosen tokens and entropy on the GPU. Arguments and meaning are those of
// logprob/contract.h with device pointers; targets outside the vocabulary are refused on the
// device.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "logprob/contract.h"

namespace oneshot::cuda {

// Bytes of device memory the forward pass needs besides its arguments.
int64_t logprob_workspace(DType dtype, int64_t rows, int64_t vocab);

cudaError_t logprob_forward(const LogprobForward&, int64_t rows, void* workspace, cudaStream_t);
cudaError_t logprob_backward(const LogprobBackward&, int64_t rows, cudaStream_t);

}  // namespace oneshot::cuda
