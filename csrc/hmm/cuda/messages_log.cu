// Exact messages: log space in double, one block for each sequence and direction, any number of
// states. They serve the sequences whose linear sweep does not count, and the gradient of the
// posteriors, for which each message carries what paths have collected of the upstream gradients V:
// before_t(i) = E[V up to t | z_t = i], after_t(i) = E[V behind t | z_t = i] (see
// hmm/cpu/posteriors_backward.cpp). No vectors, no tiles: this has to be right.
#include "hmm/cuda/chain.cuh"

namespace oneshot::cuda {
namespace {

constexpr int kThreads = 128;

// Largest of a row of logarithms, or 0; every warp finds it for itself.
__device__ double row_high(const double* row, int64_t states) {
  double high = kNever;
  for (int64_t k = threadIdx.x % 32; k < states; k += 32) high = row[k] > high ? row[k] : high;
  return finite_or_zero(warp_reduce(high, Largest()));
}

template <typename T>
struct Upstream {
  const T* gamma;   // of the sequence, or nullptr: 0
  const T* xi;      //
  const T* xi_sum;  //
  int64_t states;

  __device__ Upstream(const HmmUpstream<T>& up, const HmmInput<T>& in, int64_t b)
      : gamma(up.gamma == nullptr ? nullptr : up.gamma + b * in.steps * in.states),
        xi(up.xi == nullptr ? nullptr : up.xi + b * (in.steps - 1) * in.states * in.states),
        xi_sum(up.xi_sum == nullptr ? nullptr : up.xi_sum + b * in.states * in.states),
        states(in.states) {}

  __device__ double state(int64_t t, int64_t i) const {
    return gamma == nullptr ? 0.0 : double(gamma[t * states + i]);
  }
  // Of the pair ij into step t.
  __device__ double pair(int64_t t, int64_t ij) const {
    double value = xi == nullptr ? 0.0 : double(xi[(t - 1) * states * states + ij]);
    if (xi_sum != nullptr) value += double(xi_sum[ij]);
    return value;
  }
};

// log sum over n of exp(log_weight(n)), and the mean of value(n) under these weights. Nothing
// passes through a weight of 0, whatever its value.
struct LogSum {
  double log_sum, mean;
};
template <bool kMean, typename Weight, typename Value>
__device__ __forceinline__ LogSum log_sum(int64_t count, const Weight& log_weight,
                                          const Value& value) {
  double high = kNever;
  for (int64_t n = 0; n < count; ++n) {
    const double x = log_weight(n);
    high = x > high ? x : high;
  }
  if (high == kNever) return {kNever, 0.0};
  double sum = 0.0, values = 0.0;
  for (int64_t n = 0; n < count; ++n) {
    const double e = exp(log_weight(n) - high);
    sum += e;
    if (kMean && e != 0.0) values += e * value(n);
  }
  const double more = log(sum);
  return {high + more, kMean ? values * exp(-more) : 0.0};  // a division would need a stack
}

// Notes what is no potential.
class Reader {
 public:
  template <typename T>
  __device__ __forceinline__ double operator()(T x) {
    bad_ |= flawed(x);
    return double(x);
  }
  __device__ int bad() const { return bad_; }

 private:
  bool bad_ = false;
};

template <typename T, bool kGradient>
__device__ void forward(const HmmInput<T>& in, const HmmMessages& m, const Upstream<T>& up,
                        int64_t b, int64_t length, double* scratch, T* log_likelihood) {
  const int64_t states = in.states;
  Reader read;
  double exponent = 0.0;
  double* before = kGradient ? m.before + b * in.steps * states : nullptr;
  for (int64_t j = threadIdx.x; j < states && length > 0; j += kThreads) {
    m.alpha_of(b, 0, states)[j] =
        read(in.log_init[b * in.init_stride + j]) + read(emissions_of(in, b, 0)[j]);
    if (kGradient) before[j] = up.state(0, j);
  }
  __syncthreads();
  for (int64_t t = 1; t < length; ++t) {
    const double* from = m.alpha_of(b, t - 1, states);
    double* to = m.alpha_of(b, t, states);
    const T* emissions = emissions_of(in, b, t);
    const T* matrix = matrix_into(in, b, t);
    const double stale = row_high(from, states);
    for (int64_t j = threadIdx.x; j < states; j += kThreads) {
      const LogSum sum = log_sum<kGradient>(
          states, [&](int64_t i) { return from[i] + read(matrix[i * states + j]); },
          [&](int64_t i) { return before[(t - 1) * states + i] + up.pair(t, i * states + j); });
      to[j] = sum.log_sum - stale + read(emissions[j]);
      if (kGradient) before[t * states + j] = sum.mean + up.state(t, j);
    }
    exponent += stale;
    if (threadIdx.x == 0) m.scale[b * in.steps + t] = stale;
    __syncthreads();
  }
  double total = 0.0;
  if (length > 0 && threadIdx.x == 0) {
    const double* last = m.alpha_of(b, length - 1, states);
    const auto weight = [&](int64_t i) { return last[i] + read(final_of(in, b, i)); };
    total = log_sum<false>(states, weight, [](int64_t) { return 0.0; }).log_sum + exponent;
  }
  const int bad = int(block_reduce(double(read.bad()), scratch, Largest()));
  if (threadIdx.x == 0) log_likelihood[b] = bad != 0 ? T(NAN) : T(total);
}

template <typename T, bool kGradient>
__device__ void backward(const HmmInput<T>& in, const HmmMessages& m, const Upstream<T>& up,
                         int64_t b, int64_t length) {
  const int64_t states = in.states;
  Reader read;  // what it notes the forward sweep notes too
  double* rows = m.beta + b * in.steps * states;
  double* after = kGradient ? m.after + b * in.steps * states : nullptr;
  for (int64_t i = threadIdx.x; i < states && length > 0; i += kThreads) {
    rows[(length - 1) * states + i] = read(final_of(in, b, i));
    if (kGradient) after[(length - 1) * states + i] = 0.0;
  }
  __syncthreads();
  for (int64_t t = length - 1; t > 0; --t) {
    const double* from = rows + t * states;
    const T* emissions = emissions_of(in, b, t);
    const T* matrix = matrix_into(in, b, t);
    const double high = row_high(from, states);
    for (int64_t i = threadIdx.x; i < states; i += kThreads) {
      const LogSum sum = log_sum<kGradient>(
          states,
          [&](int64_t j) { return read(matrix[i * states + j]) + read(emissions[j]) + from[j]; },
          [&](int64_t j) {
            return up.pair(t, i * states + j) + up.state(t, j) + after[t * states + j];
          });
      rows[(t - 1) * states + i] = sum.log_sum - high;
      if (kGradient) after[(t - 1) * states + i] = sum.mean;
    }
    __syncthreads();
  }
}

template <typename T, bool kGradient>
__global__ void __launch_bounds__(kThreads, 4)
    exact_messages_kernel(HmmInput<T> in, HmmUpstream<T> upstream, HmmMessages m,
                          T* log_likelihood) {
  ONESHOT_SHARED(double, scratch, kThreads / 32);
  const int both = m.beta != nullptr;
  for (int64_t task = blockIdx.x; task < in.batch << both; task += gridDim.x) {
    const int64_t b = task >> both;
    if (!m.is_log(b, in.batch)) continue;
    const int64_t length = length_of(in, b);
    const Upstream<T> up(upstream, in, b);
    if ((task & both) == 0) {
      forward<T, kGradient>(in, m, up, b, length, scratch, log_likelihood);
    } else {
      backward<T, kGradient>(in, m, up, b, length);
    }
    __syncthreads();
  }
}

}  // namespace

template <typename T>
cudaError_t hmm_log_messages(const HmmInput<T>& in, const HmmUpstream<T>& upstream,
                             const HmmMessages& m, T* log_likelihood, cudaStream_t stream) {
  const int64_t tasks = in.batch * (m.beta == nullptr ? 1 : 2);
  const auto kernel =
      m.before == nullptr ? exact_messages_kernel<T, false> : exact_messages_kernel<T, true>;
  return launch(kernel, blocks_for(tasks), kThreads, 0, stream, in, upstream, m, log_likelihood);
}

template cudaError_t hmm_log_messages(const HmmInput<float>&, const HmmUpstream<float>&,
                                      const HmmMessages&, float*, cudaStream_t);
template cudaError_t hmm_log_messages(const HmmInput<double>&, const HmmUpstream<double>&,
                                      const HmmMessages&, double*, cudaStream_t);

}  // namespace oneshot::cuda
