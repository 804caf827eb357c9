// The terms of one token: value and derivatives, as in cpu/policy_loss.inc.
#pragma once

#include "cuda/policy_loss.cuh"
#include "cuda/tokens.cuh"

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
      slope = -(x + value);
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
  }
}

// -min(r A, clip(r) A), with two further bounds for negative advantages.
template <typename R>
__device__ __forceinline__ void clip_terms(const cpu::PolicyOptions& o, R advantage,
                                           PolicyTerms<R>& t) {
  const R low = R(o.clip_min), high = R(o.clip_max), delta = R(o.delta);
  const bool negative = advantage < R(0), below = t.ratio<low, above = t.ratio> high;
  const bool over = t.ratio > delta;
  const R bounded = clamped(t.ratio, low, high) * advantage;
  const R plain = smaller(delta, t.ratio) * advantage;
  const bool take_plain = plain <= bounded;
  const R loss = -(take_plain ? plain : bounded);
  const R limit = R(-o.dual_clip) * advantage;  // positive where it is used
  const bool cut = negative && loss > limit;
  const bool still = (take_plain && over) || (!take_plain && (below || above)) || cut;
  t.low = below && negative;
  t.high = above && advantage > R(0);
  t.dual = cut || (over && negative);
  t.policy = cut ? limit : loss;
  t.policy_by_log_ratio = still ? R(0) : -t.ratio * advantage;
}

// `mean`: of the sequence's log-ratios, for the ratios that are shared.
template <typename R>
__device__ __forceinline__ PolicyTerms<R> policy_terms(const PolicyInputs& in, int64_t b,
                                                       int64_t at, R mean) {
  const cpu::PolicyOptions& o = in.options;
  const R logprob = token_value<R>(in.logprobs, b, at);
  const R advantage = token_value<R>(in.advantages, b, at);
  PolicyTerms<R> t{};
  if (in.old_logprobs.data != nullptr) {
    t.log_ratio = logprob - token_value<R>(in.old_logprobs, b, at);
  }
  const R exponent = o.ratio == RatioLevel::kToken ? t.log_ratio : mean;
  const R low = R(o.log_ratio_min), high = R(o.log_ratio_max);
  const bool held = outside(exponent, low, high);
  t.ratio = exponential(clamped(exponent, low, high));
  if (o.surrogate == Surrogate::kClip) {
    clip_terms(o, advantage, t);
    if (held) t.policy_by_log_ratio = R(0);
  } else {
    R factor = advantage;
    if (o.surrogate == Surrogate::kCispo) {
      factor = clamped(t.ratio, R(o.clip_min), R(o.clip_max)) * advantage;
      t.low = t.ratio < R(o.clip_min);
      t.high = t.ratio > R(o.clip_max);
    }
    t.policy_by_logprob = -factor;
    t.policy = -factor * logprob;
  }
  if (in.importance_weights.data != nullptr) {
    const R weight = token_value<R>(in.importance_weights, b, at);
    t.policy *= weight;
    t.policy_by_logprob *= weight;
    t.policy_by_log_ratio *= weight;
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
