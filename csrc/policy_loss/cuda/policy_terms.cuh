// The terms of policy_loss/terms.h in the threads of CUDA: a lane is one number.
#pragma once

#include "policy_loss/cuda/policy_loss.cuh"
#include "policy_loss/cuda/tokens.cuh"

namespace oneshot::cuda {

#define ONESHOT_INLINE __device__ __forceinline__

template <typename R>
struct Kind {
  using M = bool;
  static constexpr DType kDType = sizeof(R) == 8 ? DType::kFloat64 : DType::kFloat32;
  static ONESHOT_INLINE R set(double x) { return R(x); }
  static ONESHOT_INLINE bool none() { return false; }
};
template <typename R>
ONESHOT_INLINE R select(bool m, R yes, R no) {
  return m ? yes : no;
}
// Both return the second operand if one is NaN, like the lanes of the CPU.
template <typename R>
ONESHOT_INLINE R max(R a, R b) {
  return a > b ? a : b;
}
template <typename R>
ONESHOT_INLINE R min(R a, R b) {
  return a < b ? a : b;
}
ONESHOT_INLINE float abs(float x) { return fabsf(x); }
ONESHOT_INLINE double abs(double x) { return fabs(x); }
ONESHOT_INLINE float exp(float x) { return expf(x); }
ONESHOT_INLINE double exp(double x) { return ::exp(x); }
ONESHOT_INLINE float fma(float a, float b, float c) { return fmaf(a, b, c); }
ONESHOT_INLINE double fma(double a, double b, double c) { return ::fma(a, b, c); }

#include "policy_loss/terms.h"

// The policy's own log-probability where there is no older one.
template <typename R>
ONESHOT_INLINE R old_logprob(const PolicyInputs& in, int64_t b, int64_t at, R logprob) {
  return in.old_logprobs.data == nullptr ? logprob : token_value<R>(in.old_logprobs, b, at);
}

template <typename R>
ONESHOT_INLINE PolicyTerms<R> terms_at(const PolicyInputs& in, const PolicyConstants<R>& c,
                                       int64_t b, int64_t at) {
  const R logprob = token_value<R>(in.logprobs, b, at);
  const R advantage = token_value<R>(in.advantages, b, at);
  const R ref = c.kl != KlEstimator::kNone ? token_value<R>(in.ref_logprobs, b, at) : R(0);
  const R weight = c.weighted ? token_value<R>(in.importance_weights, b, at) : R(0);
  PolicyTerms<R> t{};
  t.log_ratio = logprob - old_logprob<R>(in, b, at, logprob);
  policy_terms<R, Extent::kEvery>(c, logprob, advantage, ref, weight, t);
  return t;
}

#undef ONESHOT_INLINE

}  // namespace oneshot::cuda
