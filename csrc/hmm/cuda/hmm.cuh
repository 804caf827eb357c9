// Hidden Markov models and linear-chain CRFs on the GPU. Arguments and meaning are those of
// hmm/contract.h with device pointers; besides, the steps of a sequence are adjacent:
// emit_step_stride is `states`, trans_step_stride is `states` squared, or 0 with homogeneous.
// Work is ordered on the stream, nothing waits for the host. A length outside [0, steps] is refused
// on the device (see `require`).
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "hmm/contract.h"

namespace oneshot::cuda {

// `workspace`: device memory of as many bytes as the function above each launcher says.
template <typename T>
int64_t hmm_posteriors_workspace(const HmmInput<T>&, const HmmPosteriors<T>&);
template <typename T>
cudaError_t hmm_posteriors(const HmmInput<T>&, const HmmPosteriors<T>&, void* workspace,
                           cudaStream_t);

template <typename T>
int64_t hmm_posteriors_backward_workspace(const HmmInput<T>&, const HmmGradients<T>&);
template <typename T>
cudaError_t hmm_posteriors_backward(const HmmInput<T>&, const HmmUpstream<T>&,
                                    const HmmGradients<T>&, void* workspace, cudaStream_t);

template <typename T>
int64_t hmm_viterbi_workspace(const HmmInput<T>&);
template <typename T>
cudaError_t hmm_viterbi(const HmmInput<T>&, int64_t* path, T* score, void* workspace, cudaStream_t);

template <typename T>
int64_t hmm_sample_workspace(const HmmInput<T>&);
template <typename T>
cudaError_t hmm_sample(const HmmInput<T>&, const HmmSampling&, int64_t* paths, void* workspace,
                       cudaStream_t);

// An id outside [-1, labels) is refused on the device.
template <typename T>
cudaError_t combine_emissions(const EmissionInput<T>&, T* out, cudaStream_t);

template <typename T>
int64_t combine_emissions_backward_workspace(const EmissionInput<T>&);
template <typename T>
cudaError_t combine_emissions_backward(const EmissionInput<T>&, const EmissionGradients<T>&,
                                       void* workspace, cudaStream_t);

}  // namespace oneshot::cuda
