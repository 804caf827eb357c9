// The terms of one group of tokens: value and derivatives, on the lanes of the CPU and in the
// threads of CUDA.
//
// Included by kernel bodies after their lane types, inside their namespace: it includes nothing and
// has no guard. A lane type V brings Kind<V> with the mask M, set, none and kDType; + - * and
// comparisons; select, min, max, abs, exp and fma. ONESHOT_INLINE marks a function that must
// disappear in the loop over tokens.

#ifndef ONESHOT_INLINE  // opened alone
#include "cpu/alone.h"
#include "policy_loss/cpu/policy_loss.h"
#include "policy_loss/cpu/tokens.inc"
#endif

ONESHOT_INLINE bool is_finite(double x) { return x - x == 0.0; }

// Where the series below replaces exp(x) - 1 - x.
template <typename V>
ONESHOT_INLINE typename Kind<V>::M near_zero(V x) {
  return abs(x) < Kind<V>::set(Kind<V>::kDType == DType::kFloat64 ? 0.35 : 0.7);
}

// exp(x) - 1 - x, given e = exp(x), without the cancellation that leaves k3 no digits near 0:
// x^2 (1/2! + x/3! + x^2/4! + ...), with as many terms as the lanes have digits.
template <typename V>
ONESHOT_INLINE V excess_exp(V x, V e) {
  const auto set = [](double c) { return Kind<V>::set(c); };
  constexpr bool kWide = Kind<V>::kDType == DType::kFloat64;
  V series = set(1.0 / 3628800.0);
  if constexpr (kWide) {
    V high = set(1.0 / 6227020800.0);
    high = fma(high, x, set(1.0 / 479001600.0));
    high = fma(high, x, set(1.0 / 39916800.0));
    series = fma(high, x, series);
  }
  series = fma(series, x, set(1.0 / 362880.0));
  series = fma(series, x, set(1.0 / 40320.0));
  series = fma(series, x, set(1.0 / 5040.0));
  series = fma(series, x, set(1.0 / 720.0));
  // Recorded float32 results depend on these eight digits, one unit below 1/120.
  series = fma(series, x, set(kWide ? 1.0 / 120.0 : 8.3333333e-3));
  series = fma(series, x, set(1.0 / 24.0));
  series = fma(series, x, set(1.0 / 6.0));
  series = fma(series, x, set(0.5));
  return select(near_zero(x), x * x * series, e - set(1.0) - x);
}

// max and min return their second operand if one is NaN: a NaN value stays NaN.
template <typename V>
ONESHOT_INLINE V clamp(V x, V low, V high) {
  return max(low, min(high, x));
}
template <typename V>
ONESHOT_INLINE typename Kind<V>::M outside(V x, V low, V high) {
  return (x < low) | (x > high);
}

// factor * x, and 0 where the factor is 0 even if x is infinite; a NaN stays.
template <typename V>
ONESHOT_INLINE V scaled(V factor, V x) {
  const V zero = Kind<V>::set(0.0);
  return select((factor == zero) & (x == x), zero, factor * x);
}

// What the loop over tokens may leave out when it is compiled. kPlain: PPO's clipped surrogate with
// the token's own ratio and nothing else that touches the policy term; kClip: the clipped surrogate
// with every switch; kEvery: every surrogate, too.
enum class Extent { kPlain, kClip, kEvery };

// The options as lanes, made once a row.
template <typename V>
struct PolicyConstants {
  Surrogate surrogate;
  KlEstimator kl;
  bool by_sequence, shared, clamps, dual, weighted, kl_weighted, kl_clamps, kl_plus, policy;
  V clip_min, clip_max, low, high, kl_low, kl_high, kl_min, kl_max;
  // -min(r A, clip(r) A) with its two further bounds is -A times r held within a range, which
  // depends on the sign of A.
  V positive_max, negative_max, dual_from;
  V temperature_positive, temperature_negative;            // of SAPO
  V k_positive, k_negative, rate_positive, rate_negative;  // of VESPO
  V log_min, log_max;                                      // the clip range, for GMPO
  V exponent, ratio;                                       // of the sequence, if by_sequence
  typename Kind<V>::M held;                                // its exponent lies beyond the clamp

  // `of_sequence`: logarithm of the sequence's ratio.
  ONESHOT_INLINE explicit PolicyConstants(const PolicyInputs& in, double of_sequence = 0.0) {
    const PolicyOptions& o = in.options;
    surrogate = o.surrogate;
    kl = in.ref_logprobs.data != nullptr ? o.kl : KlEstimator::kNone;
    by_sequence = o.ratio != RatioLevel::kToken;
    shared = o.ratio == RatioLevel::kSequence || o.ratio == RatioLevel::kSequenceProduct;
    clamps = is_finite(o.log_ratio_min) || is_finite(o.log_ratio_max);
    dual = is_finite(o.dual_clip) || is_finite(o.delta);
    weighted = in.importance_weights.data != nullptr;
    kl_weighted = o.kl_importance_weighted;
    kl_clamps = is_finite(o.kl_log_ratio_clamp) || is_finite(o.kl_clamp);
    kl_plus = o.kl == KlEstimator::kK1Plus || o.kl == KlEstimator::kK3Plus ||
              o.kl == KlEstimator::kAbsPlus;
    policy = o.policy_coef != 0.0;
    clip_min = Kind<V>::set(o.clip_min);
    clip_max = Kind<V>::set(o.clip_max);
    const double cap = o.delta > o.clip_max ? o.delta : o.clip_max;
    const bool dual_cuts = o.dual_clip < cap;
    positive_max = Kind<V>::set(o.delta < o.clip_max ? o.delta : o.clip_max);
    negative_max = Kind<V>::set(dual_cuts ? o.dual_clip : cap);
    dual_from = Kind<V>::set(dual_cuts && o.dual_clip < o.delta ? o.dual_clip : o.delta);
    low = Kind<V>::set(o.log_ratio_min);
    high = Kind<V>::set(o.log_ratio_max);
    kl_low = Kind<V>::set(-o.kl_log_ratio_clamp);
    kl_high = Kind<V>::set(o.kl_log_ratio_clamp);
    kl_min = Kind<V>::set(-o.kl_clamp);
    kl_max = Kind<V>::set(o.kl_clamp);
    temperature_positive = Kind<V>::set(o.sapo_temperature_pos);
    temperature_negative = Kind<V>::set(o.sapo_temperature_neg);
    k_positive = Kind<V>::set(o.vespo_k_pos);
    k_negative = Kind<V>::set(o.vespo_k_neg);
    rate_positive = Kind<V>::set(o.vespo_lambda_pos);
    rate_negative = Kind<V>::set(o.vespo_lambda_neg);
    const bool logs = surrogate == Surrogate::kGmpo;
    log_min = Kind<V>::set(logs && o.clip_min > 0.0 ? std::log(o.clip_min) : -double(INFINITY));
    log_max = Kind<V>::set(logs ? std::log(o.clip_max) : double(INFINITY));
    const V whole = Kind<V>::set(of_sequence);
    exponent = clamp(whole, low, high);
    ratio = exp(exponent);
    held = outside(whole, low, high);
  }
};

// The log-ratio as it enters the sum over its sequence: GMPO holds it on the side on which the sign
// of the advantage would gain.
template <typename V>
ONESHOT_INLINE V entering_log_ratio(const PolicyConstants<V>& c, V log_ratio, V advantage) {
  if (c.surrogate != Surrogate::kGmpo) return log_ratio;
  const V zero = Kind<V>::set(0.0);
  const V below = max(c.log_min, log_ratio);
  const V above = min(c.log_max, log_ratio);
  return select(advantage < zero, below, select(advantage > zero, above, log_ratio));
}

// What one group of lanes contributes, and the derivatives by log-probability and log-ratio.
template <typename V>
struct PolicyTerms {
  V policy, policy_by_logprob, policy_by_log_ratio;
  V kl, kl_by_logprob, kl_by_log_ratio;
  V log_ratio, ratio;
  typename Kind<V>::M low, high, dual;
};

// KL estimate of each token and its derivative by the log-probability.
template <typename V>
ONESHOT_INLINE void kl_terms(const PolicyConstants<V>& c, V logprobs, V ref, V& value, V& slope) {
  const V zero = Kind<V>::set(0.0);
  const V log_ratio = ref - logprobs;
  const V x = c.kl_clamps ? clamp(log_ratio, c.kl_low, c.kl_high) : log_ratio;
  if (c.kl == KlEstimator::kK3 || c.kl == KlEstimator::kK3Plus) {
    const V e = exp(x);
    value = excess_exp(x, e);
    slope = select(near_zero(x), zero - (x + value), Kind<V>::set(1.0) - e);
  } else if (c.kl == KlEstimator::kK2) {
    value = Kind<V>::set(0.5) * x * x;
    slope = zero - x;
  } else if (c.kl == KlEstimator::kAbs || c.kl == KlEstimator::kAbsPlus) {
    value = abs(x);
    slope = select(x < zero, Kind<V>::set(1.0), select(x > zero, Kind<V>::set(-1.0), zero * x));
  } else {
    value = zero - x;
    slope = Kind<V>::set(1.0);
  }
  if (c.kl_clamps) {
    const auto held = outside(log_ratio, c.kl_low, c.kl_high) | outside(value, c.kl_min, c.kl_max);
    slope = select(held, zero, slope);
    value = clamp(value, c.kl_min, c.kl_max);
  }
  if (c.kl_plus) {  // the gradient of k2, whatever the value
    slope = zero - log_ratio;
    value = value + (log_ratio - log_ratio);  // NaN where the gradient is infinite
  }
}

// `factor` is the advantage times the importance weight: all that multiplies the ratio.
template <typename V, Extent kExtent>
ONESHOT_INLINE void clip_terms(const PolicyConstants<V>& c, V advantage, V factor,
                               PolicyTerms<V>& t) {
  const V zero = Kind<V>::set(0.0);
  const V inf = Kind<V>::set(double(INFINITY));
  const auto negative = advantage < zero;
  const auto positive = advantage > zero;
  const V lowest = select(negative, c.clip_min, zero - inf);
  V highest = select(positive, c.positive_max, inf);
  if (kExtent != Extent::kPlain && c.dual) highest = select(negative, c.negative_max, highest);
  t.policy = scaled(zero - factor, clamp(t.ratio, lowest, highest));
  t.policy_by_logprob = zero;
  t.policy_by_log_ratio = select(outside(t.ratio, lowest, highest), zero, t.policy);
  t.low = (t.ratio < c.clip_min) & negative;
  t.high = (t.ratio > c.clip_max) & positive;
  if (kExtent != Extent::kPlain && c.dual) t.dual = (t.ratio > c.dual_from) & negative;
}

// A sigmoid in the place of the clipped ratio: -A sigmoid(c (r - 1)) 4 / c.
template <typename V>
ONESHOT_INLINE void sapo_terms(const PolicyConstants<V>& c, V advantage, V factor,
                               PolicyTerms<V>& t) {
  const V zero = Kind<V>::set(0.0), one = Kind<V>::set(1.0), four = Kind<V>::set(4.0);
  const V steepness = select(advantage < zero, c.temperature_negative, c.temperature_positive);
  const V x = steepness * (t.ratio - one);
  const V e = exp(zero - abs(x));
  const V larger = one / (one + e);  // sigmoid(|x|)
  const V gate = select(x < zero, e * larger, larger);
  t.policy = scaled(zero - factor, four * gate / steepness);
  t.policy_by_log_ratio = scaled(zero - factor, scaled(four * e * larger * larger, t.ratio));
}

// The constant weight of log p: r^k exp(lambda (1 - r)), from r and its logarithm.
template <typename V>
ONESHOT_INLINE V vespo_weight(const PolicyConstants<V>& c, V advantage, V ratio, V exponent) {
  const auto negative = advantage < Kind<V>::set(0.0);
  const V k = select(negative, c.k_negative, c.k_positive);
  const V rate = select(negative, c.rate_negative, c.rate_positive);
  // An infinite exponent is held, since it would meet an infinite ratio of the other sign.
  const V power = k * clamp(exponent, Kind<V>::set(-1e30), Kind<V>::set(1e30));
  return exp(rate * (Kind<V>::set(1.0) - ratio) + power);
}

template <typename V, Extent kExtent>
ONESHOT_INLINE void policy_terms(const PolicyConstants<V>& c, V logprobs, V advantage, V ref,
                                 V weight, PolicyTerms<V>& t) {
  const V zero = Kind<V>::set(0.0);
  t.low = t.high = t.dual = Kind<V>::none();
  auto held = Kind<V>::none();
  const bool general = kExtent != Extent::kPlain;
  V exponent = t.log_ratio;
  if (general && c.by_sequence) {
    held = c.held;
    exponent = c.exponent;
    t.ratio = c.ratio;
  } else if (general && c.clamps) {
    held = outside(t.log_ratio, c.low, c.high);
    exponent = clamp(t.log_ratio, c.low, c.high);
    t.ratio = exp(exponent);
  } else {
    t.ratio = exp(t.log_ratio);
  }
  V factor = advantage;
  if (general && c.weighted) {
    factor = select(advantage == zero, scaled(advantage, weight), scaled(weight, advantage));
  }
  if (kExtent != Extent::kEvery || c.surrogate == Surrogate::kClip) {
    clip_terms<V, kExtent>(c, advantage, factor, t);
  } else if (c.surrogate == Surrogate::kSapo) {
    t.policy_by_logprob = zero;
    sapo_terms(c, advantage, factor, t);
  } else if (c.surrogate == Surrogate::kGmpo) {
    t.policy_by_logprob = zero;
    t.policy = t.policy_by_log_ratio = scaled(zero - factor, t.ratio);
    t.low = (t.log_ratio < c.log_min) & (advantage < zero);
    t.high = (t.log_ratio > c.log_max) & (advantage > zero);
  } else {  // log p with a weight that has no gradient
    if (c.surrogate == Surrogate::kCispo) {
      factor = scaled(factor, clamp(t.ratio, c.clip_min, c.clip_max));
      t.low = t.ratio < c.clip_min;
      t.high = t.ratio > c.clip_max;
    } else if (c.surrogate == Surrogate::kVespo) {
      factor = scaled(factor, vespo_weight(c, advantage, t.ratio, exponent));
    }
    t.policy_by_logprob = zero - factor;
    t.policy = scaled(t.policy_by_logprob, logprobs);
    t.policy_by_log_ratio = zero;
  }
  if (general && c.clamps) t.policy_by_log_ratio = select(held, zero, t.policy_by_log_ratio);
  t.kl = t.kl_by_logprob = t.kl_by_log_ratio = zero;
  if (c.kl != KlEstimator::kNone) {
    kl_terms(c, logprobs, ref, t.kl, t.kl_by_logprob);
    if (general && c.kl_weighted) {
      t.kl = t.kl * t.ratio;
      t.kl_by_logprob = t.kl_by_logprob * t.ratio;
      t.kl_by_log_ratio = select(held, zero, t.kl);
    }
  }
}
