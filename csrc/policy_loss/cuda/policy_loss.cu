#include "policy_loss/cuda/policy_loss.cuh"

#include "policy_loss/cuda/policy_terms.cuh"

namespace oneshot::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;

// One block a sequence: the sums over its counted tokens.
template <typename R>
__global__ void policy_rows_kernel(PolicyInputs in, int64_t tokens, PolicySums* sums) {
  ONESHOT_SHARED(double, scratch, kWarps);
  ONESHOT_SHARED(int64_t, counts, kWarps);
  const Sequences& s = in.sequences;
  for (int64_t b = blockIdx.x; b < s.batch; b += gridDim.x) {
    const TokenRange range = token_range(s, b, tokens);
    PolicySums sum{};
    double exponent = 0.0;
    if (in.options.ratio != RatioLevel::kToken) {
      const PolicyConstants<R> first(in);
      const bool clips_tokens = in.options.surrogate == Surrogate::kGmpo;
      int64_t counted = 0;
      for_counted(s, range, [&](int64_t t) {
        const int64_t at = range.first + t;
        const R logprob = token_value<R>(in.logprobs, b, at);
        const R log_ratio = logprob - old_logprob<R>(in, b, at, logprob);
        const R advantage = clips_tokens ? token_value<R>(in.advantages, b, at) : R(0);
        exponent += double(entering_log_ratio(first, log_ratio, advantage));
        ++counted;
      });
      exponent = block_sum(exponent, scratch);
      counted = block_sum(counted, counts);
      if (in.options.ratio != RatioLevel::kSequenceProduct) {
        exponent = ratio_or_zero(exponent, double(counted));
      }
    }
    const PolicyConstants<R> constants(in, exponent);
    sum.ratio_min = double(INFINITY), sum.ratio_max = -double(INFINITY);
    for_counted(s, range, [&](int64_t t) {
      const PolicyTerms<R> terms = terms_at(in, constants, b, range.first + t);
      sum.policy += double(terms.policy);
      sum.kl += double(terms.kl);
      if (in.entropy.data != nullptr) {
        sum.entropy += double(token_value<R>(in.entropy, b, range.first + t));
      }
      sum.log_ratio += double(terms.log_ratio);
      sum.ratio += double(terms.ratio);
      sum.ratio_min = smaller(double(terms.ratio), sum.ratio_min);
      sum.ratio_max = larger(double(terms.ratio), sum.ratio_max);
      ++sum.tokens;
      sum.clipped_low += terms.low;
      sum.clipped_high += terms.high;
      sum.clipped_dual += terms.dual;
    });
    sum.policy = block_sum(sum.policy, scratch);
    sum.kl = block_sum(sum.kl, scratch);
    sum.entropy = block_sum(sum.entropy, scratch);
    sum.log_ratio = block_sum(sum.log_ratio, scratch);
    sum.ratio = block_sum(sum.ratio, scratch);
    sum.ratio_min = -block_reduce(-sum.ratio_min, scratch, Largest());
    sum.ratio_max = block_reduce(sum.ratio_max, scratch, Largest());
    sum.tokens = block_sum(sum.tokens, counts);
    sum.clipped_low = block_sum(sum.clipped_low, counts);
    sum.clipped_high = block_sum(sum.clipped_high, counts);
    sum.clipped_dual = block_sum(sum.clipped_dual, counts);
    const bool by_token = in.options.ratio == RatioLevel::kToken;
    sum.exponent = by_token ? ratio_or_zero(sum.log_ratio, double(sum.tokens)) : exponent;
    if (threadIdx.x == 0) sums[b] = sum;
  }
}

// Sum over the batch of what `value` takes from each sequence.
template <typename Value>
__device__ double batch_sum(const PolicySums* sums, int64_t batch, double* scratch,
                            const Value& value) {
  double sum = 0.0;
  for (int64_t b = threadIdx.x; b < batch; b += kThreads) sum += value(sums[b]);
  return block_sum(sum, scratch);
}

// One block: loss, metrics, and what the gradient needs of every sequence.
template <typename R>
__global__ void policy_total_kernel(PolicyInputs in, DeviceScalar given, const PolicySums* sums,
                                    R* loss, R* metrics, double* weights) {
  ONESHOT_SHARED(double, scratch, kWarps);
  const PolicyOptions& o = in.options;
  const int64_t batch = in.sequences.batch;
  const auto total = [&](auto value) { return batch_sum(sums, batch, scratch, value); };
  const double count = scalar_or_nan(given);
  const double tokens = total([](const PolicySums& s) { return double(s.tokens); });
  const double filled = total([](const PolicySums& s) { return s.tokens > 0 ? 1.0 : 0.0; });

  const Aggregate modes[3] = {Aggregate::kAsPolicy, o.kl_aggregate, o.entropy_aggregate};
  const double coefficients[3] = {o.policy_coef, o.kl_coef, -o.entropy_coef};
  double loss_sum = 0.0;
#pragma unroll
  for (int part = 0; part < 3; ++part) {
    const bool like_policy = modes[part] == Aggregate::kAsPolicy;
    const Weighting weight(like_policy ? o.aggregate : modes[part], o.count_empty,
                           like_policy ? count : double(NAN), o.max_length, tokens, filled, batch);
    double term = 0.0, weighted = 0.0;
    for (int64_t b = threadIdx.x; b < batch; b += kThreads) {
      const double sum = part == 0 ? sums[b].policy : part == 1 ? sums[b].kl : sums[b].entropy;
      const double w = weight(sums[b].tokens);
      term += w * sum;
      weighted += w * coefficients[part] * sum;
      weights[part * batch + b] = w * coefficients[part];
    }
    term = block_sum(term, scratch);
    weighted = block_sum(weighted, scratch);
    if (coefficients[part] != 0.0) loss_sum += weighted;  // only reported: may be infinite
    if (threadIdx.x == 0) metrics[part] = R(term);
  }
  double low = double(INFINITY), high = -double(INFINITY);
  for (int64_t b = threadIdx.x; b < batch; b += kThreads) {
    weights[3 * batch + b] = sums[b].exponent;
    low = smaller(sums[b].ratio_min, low);
    high = larger(sums[b].ratio_max, high);
  }
  low = -block_reduce(-low, scratch, Largest());
  high = block_reduce(high, scratch, Largest());
  const double ratio = total([](const PolicySums& s) { return s.ratio; });
  if (isnan(ratio)) low = high = ratio;
  if (tokens == 0.0) low = high = 0.0;
  const double figures[] = {
      ratio_or_zero(total([](const PolicySums& s) { return s.kl; }), tokens),
      ratio_or_zero(total([](const PolicySums& s) { return s.entropy; }), tokens),
      ratio_or_zero(-total([](const PolicySums& s) { return s.log_ratio; }), tokens),
      ratio_or_zero(ratio, tokens),
      low,
      high,
      ratio_or_zero(total([](const PolicySums& s) { return double(s.clipped_low); }), tokens),
      ratio_or_zero(total([](const PolicySums& s) { return double(s.clipped_high); }), tokens),
      ratio_or_zero(total([](const PolicySums& s) { return double(s.clipped_dual); }), tokens),
      tokens,
      filled};
  static_assert(sizeof(figures) == sizeof(double) * (kPolicyMetrics - 3), "every metric");
  if (threadIdx.x != 0) return;
  *loss = R(loss_sum);
#pragma unroll
  for (int i = 0; i < kPolicyMetrics - 3; ++i) metrics[3 + i] = R(figures[i]);
}

// One block a sequence.
template <typename R>
__global__ void policy_backward_kernel(PolicyInputs in, int64_t tokens, DeviceScalar grad_loss,
                                       const double* weights, void* by_logprobs, void* by_entropy) {
  ONESHOT_SHARED(double, scratch, kWarps);
  ONESHOT_SHARED(int64_t, counts, kWarps);
  const Sequences& s = in.sequences;
  const DType dtype = in.logprobs.dtype;
  const double upstream = scalar_or_nan(grad_loss);
  for (int64_t b = blockIdx.x; b < s.batch; b += gridDim.x) {
    const TokenRange range = token_range(s, b, tokens);
    const R policy_scale = R(upstream * weights[b]), kl_scale = R(upstream * weights[s.batch + b]);
    const R entropy_scale = R(upstream * weights[2 * s.batch + b]);
    const PolicyConstants<R> constants(in, weights[3 * s.batch + b]);
    // The two parts of a token's gradient: through its log-probability, and through the ratio.
    const auto parts = [&](int64_t t, R& direct, R& by_ratio, bool& clipped) {
      const PolicyTerms<R> terms = terms_at(in, constants, b, range.first + t);
      clipped = terms.low || terms.high;
      direct = kl_scale * terms.kl_by_logprob;
      by_ratio = kl_scale * terms.kl_by_log_ratio;
      if (!constants.policy) return;  // 0 times an infinite term would be NaN
      direct += policy_scale * terms.policy_by_logprob;
      by_ratio += policy_scale * terms.policy_by_log_ratio;
    };
    const bool shared = constants.shared && by_logprobs != nullptr;
    const bool clips_tokens = in.options.surrogate == Surrogate::kGmpo;
    bool clipped = false;
    R share = R(0);
    if (shared) {
      double sum = 0.0;
      int64_t counted = 0;
      for_counted(s, range, [&](int64_t t) {
        R direct, by_ratio;
        parts(t, direct, by_ratio, clipped);
        sum += double(by_ratio);
        ++counted;
      });
      sum = block_sum(sum, scratch);
      counted = block_sum(counted, counts);
      const bool product = in.options.ratio == RatioLevel::kSequenceProduct;
      share = R(product ? sum : ratio_or_zero(sum, double(counted)));
    }
    for (int64_t t = threadIdx.x; t < range.length; t += kThreads) {
      const bool keep = s.mask == nullptr || s.mask[range.dense + t];
      if (by_logprobs != nullptr) {
        R direct = R(0), by_ratio = R(0);
        if (keep) parts(t, direct, by_ratio, clipped);
        if (shared) by_ratio = clips_tokens && clipped ? R(0) : share;
        const R gradient = keep ? direct + by_ratio : R(0);
        put_value(by_logprobs, dtype, range.dense + t, gradient);
      }
      if (by_entropy != nullptr) {
        put_value(by_entropy, dtype, range.dense + t, keep ? entropy_scale : R(0));
      }
    }
  }
}

template <typename R>
cudaError_t forward(const PolicyInputs& in, int64_t tokens, DeviceScalar count, PolicySums* sums,
                    void* loss, void* metrics, double* weights, cudaStream_t stream) {
  if (in.sequences.batch > 0) {
    ONESHOT_RETURN_IF_FAILED(launch(policy_rows_kernel<R>, blocks_for(in.sequences.batch), kThreads,
                                    0, stream, in, tokens, sums));
  }
  return launch(policy_total_kernel<R>, 1, kThreads, 0, stream, in, count, sums,
                static_cast<R*>(loss), static_cast<R*>(metrics), weights);
}

}  // namespace

cudaError_t policy_loss(const PolicyInputs& in, int64_t tokens, DeviceScalar count,
                        PolicySums* sums, void* loss, void* metrics, double* weights,
                        cudaStream_t stream) {
  const auto run = in.sequences.wide ? forward<double> : forward<float>;
  return run(in, tokens, count, sums, loss, metrics, weights, stream);
}

cudaError_t policy_loss_backward(const PolicyInputs& given, int64_t tokens, DeviceScalar grad_loss,
                                 const double* weights, void* by_logprobs, void* by_entropy,
                                 cudaStream_t stream) {
  PolicyInputs in = given;
  if (in.options.kl_coef == 0.0) in.ref_logprobs = {};  // only reported: no need to read it again
  if (in.sequences.batch == 0) return cudaSuccess;
  const auto kernel =
      in.sequences.wide ? policy_backward_kernel<double> : policy_backward_kernel<float>;
  return launch(kernel, blocks_for(in.sequences.batch), kThreads, 0, stream, in, tokens, grad_loss,
                weights, by_logprobs, by_entropy);
}

}  // namespace oneshot::cuda
