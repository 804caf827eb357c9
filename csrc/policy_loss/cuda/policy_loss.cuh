// Policy loss on the GPU. Arguments and meaning are those of policy_loss/contract.h with device
// pointers; what the CPU takes as a number (the count, the upstream gradient) is read on the
// device.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "policy_loss/contract.h"

namespace oneshot::cuda {

// One number in device memory.
struct DeviceScalar {
  enum Kind : int { kNone, kFloat32, kFloat64, kInt64 };
  const void* data = nullptr;
  Kind kind = kNone;
};

// `tokens`: how many the layout has, for the check of cu_seqlens. loss and metrics
// [kPolicyMetrics] are float (double if wide), weights [4, batch] double; sums [batch] is
// workspace.
cudaError_t policy_loss(const PolicyInputs&, int64_t tokens, DeviceScalar count, PolicySums* sums,
                        void* loss, void* metrics, double* weights, cudaStream_t);

// by_logprobs and by_entropy as in PolicyGradient; nullptr: not wanted.
cudaError_t policy_loss_backward(const PolicyInputs&, int64_t tokens, DeviceScalar grad_loss,
                                 const double* weights, void* by_logprobs, void* by_entropy,
                                 cudaStream_t);

}  // namespace oneshot::cuda
