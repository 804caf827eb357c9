// Value loss and importance weights on the GPU; see policy_loss/cuda/policy_loss.cuh.
#pragma once

#include "policy_loss/cuda/policy_loss.cuh"

namespace oneshot::cuda {

// loss and metrics [kValueMetrics] are float (double if wide), weights [batch] double; the
// count of the normalizer is `count`, on the device. sums [batch] is workspace.
cudaError_t value_loss(const ValueInputs&, const Normalizer&, int64_t tokens, DeviceScalar count,
                       ValueSums* sums, void* loss, void* metrics, double* weights, cudaStream_t);
cudaError_t value_loss_backward(const ValueInputs&, int64_t tokens, DeviceScalar grad_loss,
                                const double* weights, void* by_values, cudaStream_t);

// metrics [kWeightMetrics] is float (double if wide); normalizer [1] and sums [batch] are
// workspace.
cudaError_t importance_weights(const WeightInputs&, int64_t tokens, WeightSums* sums,
                               double* normalizer, void* metrics, cudaStream_t);

}  // namespace oneshot::cuda
