// Importance weights: one block a sequence, one block for the batch, then the division.
#include "policy_loss/cuda/policy_loss_parts.cuh"
#include "policy_loss/cuda/policy_terms.cuh"

namespace oneshot::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;

template <typename R>
__device__ __forceinline__ R weight_of(const WeightInputs& in, R log_ratio, bool& below,
                                       bool& above) {
  const R bound = R(in.log_ratio_clamp), low = R(in.low), high = R(in.high);
  const R raw = exp(clamp(log_ratio, -bound, bound));
  below = raw < low;
  above = raw > high;
  if (in.truncate) return clamp(raw, low, high);
  return below || above ? R(0) : raw;
}

template <typename R>
__global__ void weight_rows_kernel(WeightInputs in, int64_t tokens, WeightSums* sums) {
  ONESHOT_SHARED(double, scratch, kWarps);
  ONESHOT_SHARED(int64_t, counts, kWarps);
  const Sequences& s = in.sequences;
  auto* out = static_cast<R*>(in.weights);
  for (int64_t b = blockIdx.x; b < s.batch; b += gridDim.x) {
    const TokenRange range = token_range(s, b, tokens);
    WeightSums sum{};
    sum.smallest = double(INFINITY), sum.largest = -double(INFINITY);
    for (int64_t t = threadIdx.x; t < range.length; t += kThreads) {
      R w = R(0);
      if (s.mask == nullptr || s.mask[range.dense + t]) {
        R log_ratio = token_value<R>(in.logprobs, b, range.first + t) -
                      token_value<R>(in.sampler_logprobs, b, range.first + t);
        if (in.ignore_nan && log_ratio != log_ratio) log_ratio = R(0);
        sum.log_ratio += double(log_ratio);
        ++sum.tokens;
        if (!in.per_sequence) {
          bool below, above;
          w = weight_of(in, log_ratio, below, above);
          sum.weight += double(w);
          sum.square += double(w) * double(w);
          sum.smallest = smaller(double(w), sum.smallest);
          sum.largest = larger(double(w), sum.largest);
          sum.below += below;
          sum.above += above;
        }
      }
      if (!in.per_sequence) out[range.dense + t] = w;
    }
    sum.log_ratio = block_sum(sum.log_ratio, scratch);
    sum.tokens = block_sum(sum.tokens, counts);
    if (in.per_sequence) {
      bool below, above;
      const R w = weight_of(in, R(sum.log_ratio), below, above);
      if (threadIdx.x == 0) out[b] = w;
      sum.smallest = sum.largest = double(w);
      sum.weight = double(sum.tokens) * double(w);
      sum.square = sum.weight * double(w);
      sum.below = below ? sum.tokens : 0;
      sum.above = above ? sum.tokens : 0;
    } else {
      sum.weight = block_sum(sum.weight, scratch);
      sum.square = block_sum(sum.square, scratch);
      sum.smallest = -block_reduce(-sum.smallest, scratch, Largest());
      sum.largest = block_reduce(sum.largest, scratch, Largest());
      sum.below = block_sum(sum.below, counts);
      sum.above = block_sum(sum.above, counts);
    }
    if (threadIdx.x == 0) sums[b] = sum;
  }
}

template <typename R>
__global__ void weight_total_kernel(WeightInputs in, const WeightSums* sums, double* normalizer,
                                    R* metrics) {
  ONESHOT_SHARED(double, scratch, kWarps);
  const int64_t batch = in.sequences.batch;
  WeightSums all{};
  double tokens = 0.0, below = 0.0, above = 0.0, by_sequence = 0.0, filled = 0.0;
  double low = double(INFINITY), high = -double(INFINITY);
  for (int64_t b = threadIdx.x; b < batch; b += kThreads) {
    const WeightSums& s = sums[b];
    if (s.tokens == 0) continue;
    all.weight += s.weight;
    all.square += s.square;
    all.log_ratio += s.log_ratio;
    tokens += double(s.tokens);
    below += double(s.below);
    above += double(s.above);
    low = smaller(s.smallest, low);
    high = larger(s.largest, high);
    by_sequence += s.weight / double(s.tokens);
    filled += 1.0;
  }
  const auto total = [&](double x) { return block_sum(x, scratch); };
  tokens = total(tokens);
  const double mean = ratio_or_zero(total(all.weight), tokens);
  low = -block_reduce(-low, scratch, Largest());
  high = block_reduce(high, scratch, Largest());
  if (tokens == 0.0) low = high = 0.0;
  if (isnan(mean)) low = high = mean;
  filled = total(filled);
  by_sequence = ratio_or_zero(total(by_sequence), filled);
  double divisor = 1.0;
  if (in.normalize) {
    divisor = in.per_sequence ? by_sequence : mean;
    if (!(divisor > 1e-8) && !isnan(divisor)) divisor = 1.0;
  }
  const double square = ratio_or_zero(total(all.square), tokens);
  const double below_share = ratio_or_zero(total(below), tokens);
  const double above_share = ratio_or_zero(total(above), tokens);
  const double kl = ratio_or_zero(-total(all.log_ratio), tokens);
  if (threadIdx.x != 0) return;
  *normalizer = divisor;
  metrics[0] = R(mean);
  metrics[1] = R(low);
  metrics[2] = R(high);
  metrics[3] = R(ratio_or_zero(mean * mean, square));
  metrics[4] = R(below_share);
  metrics[5] = R(above_share);
  metrics[6] = R(kl);
  metrics[7] = R(divisor);
}

template <typename R>
__global__ void weight_scale_kernel(R* weights, int64_t count, const double* normalizer) {
  const double divisor = *normalizer;
  const int64_t stride = int64_t(gridDim.x) * kThreads;
  for (int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x; i < count; i += stride) {
    if (weights[i] != R(0)) weights[i] = R(double(weights[i]) / divisor);
  }
}

template <typename R>
cudaError_t run(const WeightInputs& in, int64_t tokens, WeightSums* sums, double* normalizer,
                void* metrics, cudaStream_t stream) {
  const int64_t batch = in.sequences.batch;
  if (batch > 0) {
    ONESHOT_RETURN_IF_FAILED(
        launch(weight_rows_kernel<R>, blocks_for(batch), kThreads, 0, stream, in, tokens, sums));
  }
  ONESHOT_RETURN_IF_FAILED(launch(weight_total_kernel<R>, 1, kThreads, 0, stream, in, sums,
                                  normalizer, static_cast<R*>(metrics)));
  const int64_t count = in.per_sequence ? batch : tokens;
  if (!in.normalize || count == 0) return cudaSuccess;
  return launch(weight_scale_kernel<R>, blocks_for((count + kThreads - 1) / kThreads), kThreads, 0,
                stream, static_cast<R*>(in.weights), count, normalizer);
}

}  // namespace

cudaError_t importance_weights(const WeightInputs& in, int64_t tokens, WeightSums* sums,
                               double* normalizer, void* metrics, cudaStream_t stream) {
  return (in.sequences.wide ? run<double> : run<float>)(in, tokens, sums, normalizer, metrics,
                                                        stream);
}

}  // namespace oneshot::cuda
