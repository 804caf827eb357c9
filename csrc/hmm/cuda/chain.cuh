// What the kernels of `hmm` share: how they read a chain, and the messages between them.
#pragma once

#include "hmm/cuda/hmm.cuh"
#include "hmm/cuda/numbers.cuh"

namespace oneshot::cuda {

// Up to so many states a sequence belongs to one warp, which holds a matrix of a step ahead in
// registers.
template <typename T>
inline constexpr int kWarpStates = sizeof(T) == 8 ? 22 : 32;

template <typename T>
__device__ __forceinline__ int64_t length_of(const HmmInput<T>& in, int64_t b) {
  if (in.lengths == nullptr) return in.steps;
  const int64_t length = in.lengths[b];
  require(length >= 0 && length <= in.steps);
  return length;
}

template <typename T>
__device__ __forceinline__ const T* emissions_of(const HmmInput<T>& in, int64_t b, int64_t t) {
  return in.log_emit + b * in.emit_batch_stride + t * in.emit_step_stride;
}

// The matrix that leads into step t >= 1.
template <typename T>
__device__ __forceinline__ const T* matrix_into(const HmmInput<T>& in, int64_t b, int64_t t) {
  return in.log_trans + b * in.trans_batch_stride + (t - 1) * in.trans_step_stride;
}

// nullptr: zeros.
template <typename T>
__device__ __forceinline__ const T* final_row(const HmmInput<T>& in, int64_t b) {
  return in.log_final == nullptr ? nullptr : in.log_final + b * in.final_stride;
}
template <typename T>
__device__ __forceinline__ T final_of(const HmmInput<T>& in, int64_t b, int64_t state) {
  return in.log_final == nullptr ? T(0) : final_row(in, b)[state];
}

// By a block, one cache line a thread.
template <typename T>
__device__ __forceinline__ void prefetch_matrix(const T* matrix, int64_t count) {
  constexpr int64_t kLine = 128 / int64_t(sizeof(T));
  for (int64_t i = int64_t(threadIdx.x) * kLine; i < count; i += blockDim.x * kLine) {
    prefetch(matrix + i);
  }
}

// Messages of all sequences, in double: weights, or logarithms where `in_log` says so. Each belongs
// to one state of one step, up to a factor of the step.
struct HmmMessages {
  double* alpha =
      nullptr;  // [batch, stored, states], of all paths to a state, its emission included
  double* beta = nullptr;    // [batch, steps, states], of all continuations; nullptr: forward only
  double* scale = nullptr;   // [batch, steps]: alpha was divided by 2^scale (e^scale) at that step,
                             // besides the shift of the emissions
  double* onward = nullptr;  // [batch, states], scratch
  double* ready = nullptr;   // weights of a matrix that is one for all steps, [1 or batch, K, K]
  int* in_log = nullptr;     // [2, batch]: the linear sweep forward (backward) does not count;
                             // nullptr: all are logarithms
  int* whole = nullptr;      // [batch]: no scan has made the messages; nullptr: of none
  double* before = nullptr;  // [batch, steps, states], what paths have collected of the upstream
  double* after = nullptr;   // gradients up to a state and behind it
  int64_t stored = 0;        // steps, or 2: a ring of rows

  __device__ double* alpha_of(int64_t b, int64_t t, int64_t states) const {
    return alpha + (b * stored + (stored == 2 ? t & 1 : t)) * states;
  }
  __device__ bool is_log(int64_t b, int64_t batch) const {
    return in_log == nullptr || (in_log[b] | in_log[batch + b]) != 0;
  }
};

// ---- launchers of the messages: linear, then logarithms where those do not count

template <typename T>
cudaError_t hmm_warp_messages(const HmmInput<T>&, const HmmMessages&, T* log_likelihood,
                              cudaStream_t);
template <typename T>
cudaError_t hmm_block_messages(const HmmInput<T>&, const HmmMessages&, T* log_likelihood,
                               cudaStream_t);
template <typename T>
cudaError_t hmm_log_messages(const HmmInput<T>&, const HmmUpstream<T>&, const HmmMessages&,
                             T* log_likelihood, cudaStream_t);

}  // namespace oneshot::cuda
