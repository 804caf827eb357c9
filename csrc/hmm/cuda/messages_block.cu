// Linear messages of more than 32 states: one block for each sequence and direction. Messages lie
// in global memory (they stay in the first-level cache), so any number of states will do. Forward,
// a thread adds up a part of a column; backward, a warp adds up rows: both read the matrix once,
// with adjacent addresses. The matrix of the next step is called into the second-level cache
// meanwhile.
#include "hmm/cuda/chain.cuh"

namespace oneshot::cuda {
namespace {

constexpr int kThreads = 512;
template <typename T>
constexpr int kUnroll = sizeof(T) == 8 ? 1 : 4;  // more would not fit into registers

template <typename T>
struct Matrix {
  const T* potentials;
  const double* ready;  // weights, if they serve every step

  __device__ __forceinline__ double operator[](int64_t i) const {
    return ready != nullptr ? ready[i] : weight(potentials[i]);
  }
};

template <typename T>
__device__ Matrix<T> weights_into(const HmmInput<T>& in, const HmmMessages& m, int64_t b,
                                  int64_t t) {
  if (m.ready == nullptr) return {matrix_into(in, b, t), nullptr};
  return {nullptr, m.ready + (in.trans_batch_stride == 0 ? 0 : b * in.states * in.states)};
}

// Every warp finds them for itself: no barrier. No row: zeros.
template <typename T>
__device__ int row_shift(const T* row, int64_t states) {
  if (row == nullptr) return 0;
  int largest = INT_MIN;
  for (int64_t k = threadIdx.x % 32; k < states; k += 32) {
    const int candidate = shift_candidate(row[k]);
    largest = candidate > largest ? candidate : largest;
  }
  return shift_from(warp_largest(largest));
}
__device__ int message_exponent(const double* row, int64_t states) {
  int largest = 0;
  for (int64_t k = threadIdx.x % 32; k < states; k += 32) {
    largest = high_word(row[k]) > largest ? high_word(row[k]) : largest;
  }
  return exponent_of_high_word(warp_largest(largest));
}

template <typename T>
__device__ void forward(const HmmInput<T>& in, const HmmMessages& m, int64_t b, int64_t length,
                        double* scratch, T* log_likelihood) {
  const int64_t states = in.states;
  const int thread = int(threadIdx.x);
  // Threads side by side take columns, `parts` of them the sources of one column in turn.
  const int width = states > kThreads ? kThreads : int(states + 31) / 32 * 32;
  const int parts = kThreads / width, part = thread / width, column = thread % width;
  int64_t exponent = 0;
  if (length > 0) {
    const T* init = in.log_init + b * in.init_stride;
    const T* emissions = emissions_of(in, b, 0);
    const int by_init = row_shift(init, states), by_emission = row_shift(emissions, states);
    double* to = m.alpha_of(b, 0, states);
    for (int64_t j = thread; j < states; j += kThreads) {
      to[j] = fitting(weight(init[j], by_init) * weight(emissions[j], by_emission));
    }
    exponent = by_init + by_emission;
  }
  __syncthreads();
  for (int64_t t = 1; t < length; ++t) {
    const double* from = m.alpha_of(b, t - 1, states);
    double* to = m.alpha_of(b, t, states);
    const T* emissions = emissions_of(in, b, t);
    const Matrix<T> matrix = weights_into(in, m, b, t);
    if (m.ready == nullptr && t + 1 < length) {
      prefetch_matrix(matrix_into(in, b, t + 1), states * states);
    }
    const int stale = message_exponent(from, states), shift = row_shift(emissions, states);
    for (int64_t start = 0; start < states; start += width) {
      const int64_t j = start + column;
      double sum = 0.0;
      if (part < parts && j < states) {
#pragma unroll kUnroll < T>
        for (int64_t i = part; i < states; i += parts) {
          sum = fma(from[i], matrix[i * states + j], sum);
        }
      }
      if (parts > 1) {  // then all columns fit, and this loop runs once
        scratch[thread] = sum;
        __syncthreads();
        for (int p = 1; p < parts && part == 0; ++p) sum += scratch[p * width + column];
      }
      if (part == 0 && j < states) {
        to[j] = fitting(sum * weight(emissions[j], shift) * two_to(-stale));
      }
    }
    exponent += stale + shift;
    if (thread == 0) m.scale[b * in.steps + t] = stale;
    __syncthreads();
  }
  if (thread >= 32) return;
  double total = 0.0;
  if (length > 0) {
    const double* last = m.alpha_of(b, length - 1, states);
    const int shift = row_shift(final_row(in, b), states);
    exponent += shift;
    for (int64_t k = thread; k < states; k += 32) {
      total += last[k] * weight(final_of(in, b, k), shift);
    }
  }
  total = warp_reduce(total, Sum());
  if (thread != 0) return;
  log_likelihood[b] = T(length == 0 ? 0.0 : log(total) + kLn2 * double(exponent));
  m.in_log[b] = total != total;
  if (m.beta == nullptr) m.in_log[in.batch + b] = 0;
}

template <typename T>
__device__ void backward(const HmmInput<T>& in, const HmmMessages& m, int64_t b, int64_t length) {
  const int64_t states = in.states;
  const int thread = int(threadIdx.x), lane = thread % 32;
  double* rows = m.beta + b * in.steps * states;
  double* onward = m.onward + b * states;
  if (length > 0) {
    const int shift = row_shift(final_row(in, b), states);
    for (int64_t k = thread; k < states; k += kThreads) {
      rows[(length - 1) * states + k] = fitting(weight(final_of(in, b, k), shift));
    }
  }
  __syncthreads();
  for (int64_t t = length - 1; t > 0; --t) {
    const double* from = rows + t * states;
    const T* emissions = emissions_of(in, b, t);
    const Matrix<T> matrix = weights_into(in, m, b, t);
    if (m.ready == nullptr && t > 1) {
      prefetch_matrix(matrix_into(in, b, t - 1), states * states);
    }
    const double rescale = two_to(-message_exponent(from, states));
    const int shift = row_shift(emissions, states);
    for (int64_t j = thread; j < states; j += kThreads) {
      onward[j] = from[j] * weight(emissions[j], shift) * rescale;
    }
    __syncthreads();
    for (int64_t i = thread / 32; i < states; i += kThreads / 32) {
      double sum = 0.0;
#pragma unroll kUnroll < T>
      for (int64_t j = lane; j < states; j += 32) {
        sum = fma(matrix[i * states + j], onward[j], sum);
      }
      sum = warp_reduce(sum, Sum());
      if (lane == 0) rows[(t - 1) * states + i] = fitting(sum);
    }
    __syncthreads();
  }
  if (thread >= 32) return;
  bool lost = false;
  for (int64_t k = lane; k < states && length > 0; k += 32) lost |= rows[k] != rows[k];
  lost = __any_sync(kAllLanes, lost);
  if (lane == 0) m.in_log[in.batch + b] = lost;
}

template <typename T>
__global__ void __launch_bounds__(kThreads, 1)
    block_messages_kernel(HmmInput<T> in, HmmMessages m, T* log_likelihood) {
  ONESHOT_SHARED(double, scratch, kThreads);
  const int both = m.beta != nullptr;
  for (int64_t task = blockIdx.x; task < in.batch << both; task += gridDim.x) {
    const int64_t b = task >> both, length = length_of(in, b);
    if ((task & both) == 0) {
      forward(in, m, b, length, scratch, log_likelihood);
    } else {
      backward(in, m, b, length);
    }
    __syncthreads();
  }
}

// From float, too, in double: its rounding would be the same at every step.
template <typename T>
__global__ void ready_weights_kernel(HmmInput<T> in, double* ready, int64_t count) {
  const int64_t square = in.states * in.states, stride = int64_t(gridDim.x) * blockDim.x;
  for (int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; i < count; i += stride) {
    ready[i] = weight(double(in.log_trans[i / square * in.trans_batch_stride + i % square]));
  }
}

}  // namespace

template <typename T>
cudaError_t hmm_block_messages(const HmmInput<T>& in, const HmmMessages& m, T* log_likelihood,
                               cudaStream_t stream) {
  if (m.ready != nullptr && in.steps > 1) {
    const int64_t count = (in.trans_batch_stride == 0 ? 1 : in.batch) * in.states * in.states;
    ONESHOT_RETURN_IF_FAILED(launch(ready_weights_kernel<T>, blocks_for((count + 255) / 256), 256,
                                    0, stream, in, m.ready, count));
  }
  const int64_t tasks = in.batch * (m.beta == nullptr ? 1 : 2);
  return launch(block_messages_kernel<T>, blocks_for(tasks), kThreads, 0, stream, in, m,
                log_likelihood);
}

template cudaError_t hmm_block_messages(const HmmInput<float>&, const HmmMessages&, float*,
                                        cudaStream_t);
template cudaError_t hmm_block_messages(const HmmInput<double>&, const HmmMessages&, double*,
                                        cudaStream_t);

}  // namespace oneshot::cuda
