// How one warp writes the path of a sequence, from its end to its start.
#pragma once

#include "hmm/cuda/chain.cuh"

namespace oneshot::cuda {

// Lane t % 32 keeps the state of step t, and 32 of them are written at once.
class PathWriter {
 public:
  __device__ PathWriter(int64_t* path, int64_t length)
      : path_(path), length_(length), lane_(int(threadIdx.x) % 32) {}

  __device__ void put(int64_t t, int64_t state) {
    if (t % 32 == lane_) kept_ = state;
    if (t % 32 == 0 && t + lane_ < length_) path_[t + lane_] = kept_;
  }

  // -1 from a step on.
  __device__ void fill(int64_t from, int64_t steps) const {
    for (int64_t t = from + lane_; t < steps; t += 32) path_[t] = -1;
  }

 private:
  int64_t* path_;
  int64_t length_, kept_ = -1;
  int lane_;
};

// ---- launchers that hmm.cu puts together

// Up to kWarpStates<T> states; pointers [batch, steps, states] are workspace.
template <typename T>
cudaError_t hmm_warp_viterbi(const HmmInput<T>&, uint8_t* pointers, int64_t* path, T* score,
                             cudaStream_t);
// As many as Index can name; scores [batch, 2, states] are workspace, too.
template <typename T, typename Index>
cudaError_t hmm_block_viterbi(const HmmInput<T>&, double* scores, Index* pointers, int64_t* path,
                              T* score, cudaStream_t);

// From the forward messages of all steps.
template <typename T>
cudaError_t hmm_sample_paths(const HmmInput<T>&, const HmmMessages&, const HmmSampling&,
                             const T* log_likelihood, int64_t* paths, cudaStream_t);

}  // namespace oneshot::cuda
