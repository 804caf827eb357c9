// What the kernels of the `policy_loss` family take and return, on either device: torch-free
// structures on raw pointers. Arithmetic is float32 (float64 if `wide`), sums are float64.
#pragma once

#include <cstdint>

#include "common/dtype.h"
#include "policy_loss/options.h"

namespace oneshot {

// Values of any float type. Token t of sequence b lies at
//   data[b * row_stride + (first(b) + t) * token_stride],  first(b) = packed ? cu_seqlens[b] : 0,
// so token_stride 0 means one value a sequence, and row_stride 0 packed tokens.
struct TokenView {
  const void* data = nullptr;  // nullptr: not given
  DType dtype = DType::kFloat32;
  int64_t row_stride = 0;
  int64_t token_stride = 0;
};

struct Sequences {
  int64_t batch = 0;
  int64_t width = 0;                    // tokens a row of the padded layout
  const int64_t* cu_seqlens = nullptr;  // [batch + 1] for the packed layout, else nullptr
  const bool* mask = nullptr;           // dense, in the layout of the tokens; nullptr: all count
  bool wide = false;                    // float64 arithmetic and results

  int64_t first(int64_t b) const { return cu_seqlens != nullptr ? cu_seqlens[b] : 0; }
  int64_t length(int64_t b) const {
    return cu_seqlens != nullptr ? cu_seqlens[b + 1] - cu_seqlens[b] : width;
  }
  // Where the sequence starts in a dense tensor of the layout.
  int64_t dense(int64_t b) const { return cu_seqlens != nullptr ? cu_seqlens[b] : b * width; }
};

struct Normalizer {
  Aggregate aggregate;
  bool count_empty;
  double count;  // replaces the number of tokens or sequences; NaN: not given
  double max_length;
};

// ---- policy loss -----------------------------------------------------------------------------

struct PolicyInputs {
  Sequences sequences;
  TokenView logprobs, old_logprobs, advantages, ref_logprobs, entropy, importance_weights;
  PolicyOptions options;
};

// Sums over the counted tokens of one sequence.
struct PolicySums {
  double policy, kl, entropy, log_ratio, ratio, ratio_min, ratio_max;
  double exponent;  // logarithm of the sequence's ratio, or the mean log-ratio of its tokens
  int64_t tokens, clipped_low, clipped_high, clipped_dual;
};

inline constexpr int kPolicyMetrics = 14;

// ---- value loss ------------------------------------------------------------------------------

struct ValueInputs {
  Sequences sequences;
  TokenView values, old_values, returns;
  double clip;  // infinity: none
};

struct ValueSums {
  double loss, value, target, target_square, error, error_square;
  int64_t tokens, clipped;
};

inline constexpr int kValueMetrics = 5;

// ---- importance weights ----------------------------------------------------------------------

struct WeightInputs {
  Sequences sequences;
  TokenView logprobs, sampler_logprobs;
  bool per_sequence, truncate;
  double low, high, log_ratio_clamp;
  bool normalize, ignore_nan;
  void* weights;  // float (double if wide): dense tokens, or [batch] if per_sequence
};

// Sums over the weights of one sequence (each token's, or its one weight once per token).
struct WeightSums {
  double weight, square, smallest, largest, log_ratio;
  int64_t tokens, below, above;
};

inline constexpr int kWeightMetrics = 8;

}  // namespace oneshot
