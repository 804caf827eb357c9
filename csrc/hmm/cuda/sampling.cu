// Backward sampling from the forward messages: one warp for each path, the states in its lanes.
// A step waits for the state that the step behind it drew.
#include "common/philox.h"
#include "hmm/cuda/paths.cuh"

namespace oneshot::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int kWarps = kThreads / 32;

__device__ double inclusive_sum(double value) {
  const int lane = int(threadIdx.x) % 32;
  for (int by = 1; by < 32; by *= 2) {
    const double other = __shfl_up_sync(kAllLanes, value, by);
    if (lane >= by) value += other;
  }
  return value;
}

// The lowest state whose cumulative weight exceeds u times the total, of those whose weight is not
// 0: rounding could let another one pass. log_weight(i) is called by lane i % 32.
template <typename Weight>
__device__ int64_t draw(int64_t states, double u, const Weight& log_weight) {
  const int lane = int(threadIdx.x) % 32;
  const int64_t rounds = (states + 31) / 32;
  const auto of = [&](int64_t n) {
    const int64_t i = n * 32 + lane;
    return i < states ? log_weight(i) : kNever;
  };
  double high = kNever, total = 0.0;
  for (int64_t n = 0; n < rounds; ++n) {
    const double x = of(n);
    high = x > high ? x : high;
  }
  high = finite_or_zero(warp_reduce(high, Largest()));
  for (int64_t n = 0; n < rounds; ++n) {
    total += __shfl_sync(kAllLanes, inclusive_sum(exp(of(n) - high)), 31);
  }
  double before = 0.0;
  int64_t last = 0;
  for (int64_t n = 0; n < rounds; ++n) {
    const double e = exp(of(n) - high), sum = inclusive_sum(e);
    const unsigned possible = __ballot_sync(kAllLanes, e > 0.0);
    const unsigned beyond = __ballot_sync(kAllLanes, e > 0.0 && before + sum > u * total);
    if (beyond != 0) return n * 32 + __ffs(int(beyond)) - 1;
    if (possible != 0) last = n * 32 + 31 - __clz(int(possible));
    before += __shfl_sync(kAllLanes, sum, 31);
  }
  return last;
}

template <typename T>
__global__ void __launch_bounds__(kThreads)
    sample_kernel(HmmInput<T> in, HmmMessages m, HmmSampling how, const T* log_likelihood,
                  int64_t* paths) {
  const int64_t states = in.states, stride = int64_t(gridDim.x) * kWarps;
  for (int64_t number = int64_t(blockIdx.x) * kWarps + threadIdx.x / 32;
       number < how.samples * in.batch; number += stride) {
    const int64_t sample = number / in.batch, b = number - sample * in.batch;
    const int64_t length = log_likelihood[b] > minus_infinity<T>() ? length_of(in, b) : 0;
    PathWriter path(paths + number * in.steps, length);
    path.fill(length, in.steps);
    const auto id = uint64_t(how.sequence_ids == nullptr ? b : how.sequence_ids[b]);
    const bool in_log = m.is_log(b, in.batch);
    int64_t state = 0;
    for (int64_t t = length - 1; t >= 0; --t) {
      const double* alpha = m.alpha_of(b, t, states);
      const T* onward = t == length - 1 ? final_row(in, b) : matrix_into(in, b, t + 1) + state;
      const int64_t step = t == length - 1 ? 1 : states;
      state = draw(states, uniform<T>(how.seed, id, sample, t), [&](int64_t i) {
        const double x = onward == nullptr ? 0.0 : double(onward[i * step]);
        return (in_log ? alpha[i] : log(alpha[i])) + x;
      });
      path.put(t, state);
    }
  }
}

}  // namespace

template <typename T>
cudaError_t hmm_sample_paths(const HmmInput<T>& in, const HmmMessages& m, const HmmSampling& how,
                             const T* log_likelihood, int64_t* paths, cudaStream_t stream) {
  return launch(sample_kernel<T>, blocks_for((how.samples * in.batch + kWarps - 1) / kWarps),
                kThreads, 0, stream, in, m, how, log_likelihood, paths);
}

template cudaError_t hmm_sample_paths(const HmmInput<float>&, const HmmMessages&,
                                      const HmmSampling&, const float*, int64_t*, cudaStream_t);
template cudaError_t hmm_sample_paths(const HmmInput<double>&, const HmmMessages&,
                                      const HmmSampling&, const double*, int64_t*, cudaStream_t);

}  // namespace oneshot::cuda
