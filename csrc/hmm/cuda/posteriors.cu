// From messages to posteriors, or to the gradient of the posteriors: every step on its own.
#include "hmm/cuda/posteriors.cuh"

namespace oneshot::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int kWarps = kThreads / 32;
// Matrices that one block of pairs_kernel takes in turn: few where each is written; where they are
// added up always the same number, so that padding changes no bit.
constexpr int64_t kWritten = 16, kSummed = 256;

__host__ __device__ inline int64_t tiles_of(int64_t count, int64_t size) {
  return (count + size - 1) / size;
}

// What the upstream gradient of log Z passes on: nothing to -inf, which is a constant.
template <typename T>
__device__ double scale_of(const T* grad, const T* log_likelihood, int64_t b) {
  return grad == nullptr || log_likelihood[b] == minus_infinity<T>() ? 0.0 : double(grad[b]);
}

// A warp for each sequence and step: gamma, or the gradient of the emissions. Then makes of beta
// what a pair needs of its second state, so that xi = alpha * transition * beta.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    states_kernel(HmmInput<T> in, HmmMessages m, const T* log_likelihood, const T* grad, T* out,
                  double* mean, bool pairs) {
  const int64_t states = in.states;
  const int lane = int(threadIdx.x) % 32;
  const int64_t stride = int64_t(gridDim.x) * kWarps;
  for (int64_t row = int64_t(blockIdx.x) * kWarps + threadIdx.x / 32; row < in.batch * in.steps;
       row += stride) {
    const int64_t b = row / in.steps, t = row - b * in.steps;
    const T log_z = log_likelihood[b];
    T* to = out == nullptr ? nullptr : out + row * states;
    if (t >= length_of(in, b) || !(log_z > minus_infinity<T>())) {
      const T value = t < length_of(in, b) && log_z != log_z ? T(NAN) : T(0);
      for (int64_t k = lane; k < states && to != nullptr; k += 32) to[k] = value;
      continue;
    }
    const bool in_log = m.is_log(b, in.batch);
    const double* alpha = m.alpha_of(b, t, states);
    double* beta = m.beta + row * states;
    double high = kNever, total = 0.0;
    for (int64_t k = lane; in_log && k < states; k += 32) {
      high = alpha[k] + beta[k] > high ? alpha[k] + beta[k] : high;
    }
    high = warp_reduce(high, Largest());
    const auto share = [&](int64_t k) {
      return in_log ? exp(alpha[k] + beta[k] - high) : alpha[k] * beta[k];
    };
    for (int64_t k = lane; k < states; k += 32) total += share(k);
    total = warp_reduce(total, Sum());
    if (m.before != nullptr) {
      const double* before = m.before + row * states;
      const double* after = m.after + row * states;
      double value = 0.0;
      for (int64_t k = lane; k < states; k += 32) {
        const double p = share(k) / total;
        if (p != 0.0) value += p * (before[k] + after[k]);
      }
      value = warp_reduce(value, Sum());
      if (lane == 0) mean[row] = value;
      const double scale = scale_of(grad, log_likelihood, b);
      for (int64_t k = lane; k < states; k += 32) {
        const double p = share(k) / total;
        to[k] = T(p == 0.0 ? 0.0 : p * (before[k] + after[k] - value + scale));
      }
    } else if (to != nullptr) {
      for (int64_t k = lane; k < states; k += 32) to[k] = T(share(k) / total);
    }
    if (!pairs || t == 0) continue;
    const T* emissions = emissions_of(in, b, t);
    if (in_log) {
      const double behind = m.scale[row] + high + log(total);
      for (int64_t k = lane; k < states; k += 32) beta[k] += double(emissions[k]) - behind;
      continue;
    }
    int largest = INT_MIN;
    for (int64_t k = lane; k < states; k += 32) {
      const int candidate = shift_candidate(emissions[k]);
      largest = candidate > largest ? candidate : largest;
    }
    const int shift = shift_from(warp_largest(largest));
    const double behind = two_to(-int(m.scale[row])) / total;
    for (int64_t k = lane; k < states; k += 32) beta[k] *= weight(emissions[k], shift) * behind;
  }
}

// The probability of one pair of states at one step, if it is possible.
template <typename T>
__device__ __forceinline__ double pair_share(bool in_log, double alpha, double beta, T potential,
                                             double ready) {
  if (in_log) return exp(alpha + double(potential) + beta);
  return alpha * (ready >= 0.0 ? ready : weight(potential)) * beta;
}

template <typename T>
struct PairTask {
  HmmUpstream<T> upstream;
  const T* log_likelihood;
  const double* mean;  // [batch, steps], E[V] as the messages of each step have it
  int64_t rows, chunks, chunk;
  bool over_batch;  // a row is all sequences, not one
};

// xi or the gradient of the transitions. A block takes some matrices of one sequence, or one of
// every sequence; a thread one pair of states. `out` is [rows, steps - 1, K, K], or with kSum
// [rows, chunks, K, K] of sums.
template <typename T, bool kGradient, bool kSum, typename Out>
__global__ void __launch_bounds__(kThreads)
    pairs_kernel(HmmInput<T> in, HmmMessages m, PairTask<T> task, Out* out) {
  const int64_t states = in.states, square = states * states, matrices = in.steps - 1;
  const int64_t tiles = tiles_of(square, blockDim.x);
  for (int64_t n = blockIdx.x; n < task.rows * task.chunks * tiles; n += gridDim.x) {
    const int64_t number = n / tiles, ij = (n - number * tiles) * blockDim.x + threadIdx.x;
    if (ij >= square) continue;
    const int64_t i = ij / states, j = ij - i * states;
    const int64_t row = number / task.chunks, first = number % task.chunks * task.chunk;
    const int64_t end = first + task.chunk < matrices ? first + task.chunk : matrices;
    const int64_t last_sequence = task.over_batch ? in.batch : row + 1;
    double sum = 0.0;
    for (int64_t b = task.over_batch ? 0 : row; b < last_sequence; ++b) {
      const int64_t length = length_of(in, b);
      const T log_z = task.log_likelihood[b];
      const bool possible = log_z > minus_infinity<T>(), in_log = m.is_log(b, in.batch);
      const double none = log_z != log_z ? double(NAN) : 0.0;
      const double scale = scale_of(task.upstream.log_likelihood, task.log_likelihood, b);
      // What one matrix for all steps says is read once, and made a weight as the messages did.
      double ready = -1.0;
      if (in.homogeneous && possible && length > 1 && !in_log) {
        ready = weight(double(matrix_into(in, b, 1)[ij]));
      }
      for (int64_t t = first + 1; t <= end; ++t) {
        double value = t < length ? none : 0.0;
        if (t < length && possible) {
          const double* beta = m.beta + (b * in.steps + t) * states;
          value = pair_share(in_log, m.alpha_of(b, t - 1, states)[i], beta[j],
                             ready >= 0.0 ? T(0) : matrix_into(in, b, t)[ij], ready);
          if (kGradient && value != 0.0) {
            const int64_t from = (b * in.steps + t - 1) * states;
            double v = m.before[from + i] + m.after[from + states + j];
            if (task.upstream.gamma != nullptr) {
              v += double(task.upstream.gamma[from + states + j]);
            }
            if (task.upstream.xi != nullptr) {
              v += double(task.upstream.xi[(b * matrices + t - 1) * square + ij]);
            }
            if (task.upstream.xi_sum != nullptr) {
              v += double(task.upstream.xi_sum[b * square + ij]);
            }
            value *= v - task.mean[b * in.steps + t] + scale;
          }
        }
        if (kSum) {
          sum += value;
        } else {
          out[(row * matrices + t - 1) * square + ij] = Out(value);
        }
      }
    }
    if (kSum) out[number * square + ij] = Out(sum);
  }
}

template <typename T>
__global__ void sum_parts_kernel(const double* parts, int64_t rows, int64_t count, int64_t width,
                                 T* out) {
  const int64_t stride = int64_t(gridDim.x) * blockDim.x;
  for (int64_t at = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; at < rows * width;
       at += stride) {
    const int64_t row = at / width, column = at - row * width;
    double sum = 0.0;
    for (int64_t n = 0; n < count; ++n) sum += parts[(row * count + n) * width + column];
    out[at] = T(sum);
  }
}

template <typename T>
__global__ void boundary_kernel(HmmInput<T> in, const T* by_emission, bool last, bool shared,
                                T* out) {
  const int64_t states = in.states, stride = int64_t(gridDim.x) * blockDim.x;
  const int64_t rows = shared ? 1 : in.batch;
  for (int64_t at = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; at < rows * states;
       at += stride) {
    const int64_t row = at / states, k = at - row * states;
    double sum = 0.0;
    for (int64_t b = shared ? 0 : row; b < (shared ? in.batch : row + 1); ++b) {
      const int64_t length = length_of(in, b);
      if (length == 0) continue;
      sum += double(by_emission[(b * in.steps + (last ? length - 1 : 0)) * states + k]);
    }
    out[at] = T(sum);
  }
}

template <typename T, bool kSum, typename Out>
cudaError_t launch_pairs(const HmmInput<T>& in, const HmmMessages& m, const PairTask<T>& task,
                         Out* out, cudaStream_t stream) {
  const int64_t square = in.states * in.states, count = task.rows * task.chunks;
  if (count == 0) return cudaSuccess;
  const int64_t threads = square < kThreads ? (square + 31) / 32 * 32 : kThreads;
  const auto kernel =
      m.before == nullptr ? pairs_kernel<T, false, kSum, Out> : pairs_kernel<T, true, kSum, Out>;
  return launch(kernel, blocks_for(count * tiles_of(square, threads)), unsigned(threads), 0, stream,
                in, m, task, out);
}

}  // namespace

template <typename T>
cudaError_t hmm_states(const HmmInput<T>& in, const HmmMessages& m, const T* log_likelihood,
                       const T* grad_log_likelihood, T* out, double* mean, bool pairs,
                       cudaStream_t stream) {
  return launch(states_kernel<T>, blocks_for(tiles_of(in.batch * in.steps, kWarps)), kThreads, 0,
                stream, in, m, log_likelihood, grad_log_likelihood, out, mean, pairs);
}

template <typename T>
cudaError_t sum_parts(const double* parts, int64_t rows, int64_t count, int64_t width, T* out,
                      cudaStream_t stream) {
  return launch(sum_parts_kernel<T>, blocks_for(tiles_of(rows * width, kThreads)), kThreads, 0,
                stream, parts, rows, count, width, out);
}

template <typename T>
int64_t hmm_pair_parts(const HmmInput<T>& in) {
  return in.batch * tiles_of(in.steps - 1, kSummed) * in.states * in.states;
}

template <typename T>
cudaError_t hmm_pairs(const HmmInput<T>& in, const HmmMessages& m, const HmmUpstream<T>& upstream,
                      const T* log_likelihood, const double* mean, const HmmPairs<T>& pairs,
                      cudaStream_t stream) {
  const int64_t matrices = in.steps - 1, square = in.states * in.states;
  PairTask<T> task{upstream, log_likelihood, mean, in.batch, 0, 0, false};
  if (pairs.constant) {
    task.chunk = kSummed;
    task.chunks = tiles_of(matrices, kSummed);
    ONESHOT_RETURN_IF_FAILED((launch_pairs<T, true>(in, m, task, pairs.parts, stream)));
    const int64_t rows = pairs.shared ? 1 : in.batch;
    if (rows == 0) return cudaSuccess;
    return sum_parts(pairs.parts, rows, in.batch / rows * task.chunks, square, pairs.out, stream);
  }
  if (pairs.shared) {
    task.rows = 1, task.chunks = matrices, task.chunk = 1, task.over_batch = true;
    return launch_pairs<T, true>(in, m, task, pairs.out, stream);
  }
  task.chunk = kWritten;
  task.chunks = tiles_of(matrices, kWritten);
  return launch_pairs<T, false>(in, m, task, pairs.out, stream);
}

template <typename T>
cudaError_t hmm_boundary(const HmmInput<T>& in, const T* by_emission, bool last, bool shared,
                         T* out, cudaStream_t stream) {
  const int64_t count = (shared ? 1 : in.batch) * in.states;
  return launch(boundary_kernel<T>, blocks_for(tiles_of(count, kThreads)), kThreads, 0, stream, in,
                by_emission, last, shared, out);
}

#define ONESHOT_INSTANTIATE(T)                                                                    \
  template cudaError_t sum_parts(const double*, int64_t, int64_t, int64_t, T*, cudaStream_t);     \
  template cudaError_t hmm_states(const HmmInput<T>&, const HmmMessages&, const T*, const T*, T*, \
                                  double*, bool, cudaStream_t);                                   \
  template int64_t hmm_pair_parts(const HmmInput<T>&);                                            \
  template cudaError_t hmm_pairs(const HmmInput<T>&, const HmmMessages&, const HmmUpstream<T>&,   \
                                 const T*, const double*, const HmmPairs<T>&, cudaStream_t);      \
  template cudaError_t hmm_boundary(const HmmInput<T>&, const T*, bool, bool, T*, cudaStream_t);
ONESHOT_INSTANTIATE(float)
ONESHOT_INSTANTIATE(double)
#undef ONESHOT_INSTANTIATE

}  // namespace oneshot::cuda
