// The terms of one token: value and derivatives, as in policy_loss/cpu/policy_loss.inc.
#pragma once

#include "policy_loss/cuda/policy_loss.cuh"
#include "policy_loss/cuda/tokens.cuh"

namespace oneshot::cuda {

using cpu::KlEstimator;
using cpu::RatioLevel;
using cpu::Surrogate;

template <typename R>
struct PolicyTerms {
  R policy, policy_by_logprob, policy_by_log_ratio;
  R kl, kl_by_logprob, kl_by_log_ratio;
  R log_ratio, ratio;
  bool low, high, dual;
};

// exp(x) - 1 - x without the cancellation near 0: x^2 (1/2 + x/6 + ...) where |x| is small.
__device__ __forceinline__ float excess_exp(float x) {
  if (!(fabsf(x) < 0.7f)) return expf(x) - 1.0f - x;
  float series = 2.7557319e-7f;
  series = series * x + 2.7557319e-6f;
  series = series * x + 2.4801587e-5f;
  series = series * x + 1.9841270e-4f;
  series = series * x + 1.3888889e-3f;
  series = series * x + 8.3333333e-3f;
  series = series * x + 4.1666667e-2f;
  series = series * x + 1.6666667e-1f;
  return x * x * (series * x + 0.5f);
}
__device__ __forceinline__ double excess_exp(double x) {
  if (!(fabs(x) < 0.35)) return expm1(x) - x;
  double factorial = 6227020800.0, series = 1.0 / 6227020800.0;  // 13!
  for (int order = 13; order > 2; --order) {
    factorial /= order;
    series = series * x + 1.0 / factorial;
  }
  return x * x * series;
}
__device__ __forceinline__ float exponential(float x) { return expf(x); }
__device__ __forceinline__ double exponential(double x) { return exp(x); }

template <typename R>
__device__ __forceinline__ void kl_terms(const cpu::PolicyOptions& o, R logprob, R ref, R& value,
                                         R& slope) {
  const R log_ratio = ref - logprob, bound = R(o.kl_log_ratio_clamp), limit = R(o.kl_clamp);
  const R x = clamped(log_ratio, -bound, bound);
  switch (o.kl) {
    case KlEstimator::kK3:
    case KlEstimator::kK3Plus:
      value = excess_exp(x);
      slope = (x < R(0) ? -x : x) < R(0.7) ? -(x + value) : R(1) - exponential(x);
      break;
    case KlEstimator::kK2:
      value = R(0.5) * x * x;
      slope = -x;
      break;
    case KlEstimator::kAbs:
    case KlEstimator::kAbsPlus:
      value = x < R(0) ? -x : x;
      slope = x < R(0) ? R(1) : x > R(0) ? R(-1) : R(0) * x;
      break;
    default:
      value = -x;
      slope = R(1);
  }
  if (outside(log_ratio, -bound, bound) || outside(value, -limit, limit)) slope = R(0);
  value = clamped(value, -limit, limit);
  // The gradient of k2, whatever the value.
  if (o.kl == KlEstimator::kK1Plus || o.kl == KlEstimator::kK3Plus ||
      o.kl == KlEstimator::kAbsPlus) {
    slope = -log_ratio;
    value += log_ratio - log_ratio;  // NaN where the gradient is infinite
  }
}

// factor * x, and 0 where the factor is 0 even if x is infinite; a NaN stays.
template <typename R>
__device__ __forceinline__ R scaled(R factor, R x) {
  return factor == R(0) && x == x ? R(0) : factor * x;
}

// -min(r A, clip(r) A), with two further bounds: -A times r held within a range that depends on the
// sign of A. `factor` is A times the importance weight.
template <typename R>
__device__ __forceinline__ void clip_terms(const cpu::PolicyOptions& o, R advantage, R factor,
                                           PolicyTerms<R>& t) {
  const R clip_min = R(o.clip_min), clip_max = R(o.clip_max), delta = R(o.delta);
  const R cap = larger(clip_max, delta), dual_clip = R(o.dual_clip), inf = R(INFINITY);
  const bool negative = advantage < R(0);
  const bool positive = advantage > R(0);
  const R lowest = negative ? clip_min : -inf;
  const R highest = negative ? smaller(dual_clip, cap) : positive ? smaller(delta, clip_max) : inf;
  t.policy = scaled(-factor, clamped(t.ratio, lowest, highest));
  t.policy_by_log_ratio = outside(t.ratio, lowest, highest) ? R(0) : t.policy;
  t.low = negative && t.ratio < clip_min;
  t.high = positive && t.ratio > clip_max;
  t.dual = negative && t.ratio > (dual_clip < cap ? smaller(dual_clip, delta) : delta);
}

// The policy's own log-probability where there is no older one.
template <typename R>
__device__ __forceinline__ R old_logprob(const PolicyInputs& in, int64_t b, int64_t at, R logprob) {
  return in.old_logprobs.data == nullptr ? logprob : token_value<R>(in.old_logprobs, b, at);
}

// `mean`: of the sequence's log-ratios, for the ratios that are shared.
template <typename R>
__device__ __forceinline__ PolicyTerms<R> policy_terms(const PolicyInputs& in, int64_t b,
                                                       int64_t at, R mean) {
  const cpu::PolicyOptions& o = in.options;
  const R logprob = token_value<R>(in.logprobs, b, at);
  const R advantage = token_value<R>(in.advantages, b, at);
  PolicyTerms<R> t{};
  t.log_ratio = logprob - old_logprob<R>(in, b, at, logprob);
  const R exponent = o.ratio == RatioLevel::kToken ? t.log_ratio : mean;
  const R low = R(o.log_ratio_min), high = R(o.log_ratio_max);
  const bool held = outside(exponent, low, high);
  t.ratio = exponential(clamped(exponent, low, high));
  R factor = advantage;
  if (in.importance_weights.data != nullptr) {
    const R weight = token_value<R>(in.importance_weights, b, at);
    factor = advantage == R(0) ? scaled(advantage, weight) : scaled(weight, advantage);
  }
  if (o.surrogate == Surrogate::kClip) {
    clip_terms(o, advantage, factor, t);
    if (held) t.policy_by_log_ratio = R(0);
  } else {
    if (o.surrogate == Surrogate::kCispo) {
      factor = scaled(factor, clamped(t.ratio, R(o.clip_min), R(o.clip_max)));
      t.low = t.ratio < R(o.clip_min);
      t.high = t.ratio > R(o.clip_max);
    }
    t.policy_by_logprob = -factor;
    t.policy = scaled(t.policy_by_logprob, logprob);
  }
  if (in.ref_logprobs.data != nullptr && o.kl != KlEstimator::kNone) {
    kl_terms(o, logprob, token_value<R>(in.ref_logprobs, b, at), t.kl, t.kl_by_logprob);
    if (o.kl_importance_weighted) {
      t.kl *= t.ratio;
      t.kl_by_logprob *= t.ratio;
      t.kl_by_log_ratio = held ? R(0) : t.kl;
    }
  }
  return t;
}

}  // namespace oneshot::cuda
