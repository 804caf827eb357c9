// Policy loss, value loss and importance weights on the CPU: torch-free contract on raw pointers.
//
// All three work sequence by sequence. A pass over sequences [begin, end) touches nothing that
// belongs to another sequence, so any split over threads gives the same bits; sums over the batch
// are taken afterwards in sequence order. Arithmetic is float32 (float64 if `wide`), sums float64.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "common/dtype.h"

namespace oneshot::cpu {

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

// ---- aggregation -----------------------------------------------------------------------------

// The enums have the numbers of oneshot/reference/policy_loss.py, which says what they mean.
enum class Aggregate : int {
  kTokenMean,
  kTokenSum,
  kSeqMeanTokenMean,
  kSeqMeanTokenSum,
  kSeqMeanTokenSumNorm
};

struct Normalizer {
  Aggregate aggregate;
  bool count_empty;
  double count;  // replaces the number of tokens or sequences; NaN: not given
  double max_length;
};

// weights[b] = weight of one token of sequence b in the aggregated number.
void token_weights(const Normalizer&, const int64_t* lengths, int64_t batch, double* weights);

// ---- policy loss -----------------------------------------------------------------------------

enum class Surrogate : int { kClip, kCispo, kReinforce };
enum class RatioLevel : int { kToken, kSequence, kSequenceToken };
enum class KlEstimator : int { kNone, kK1, kK2, kK3, kAbs, kK1Plus, kK3Plus, kAbsPlus };

struct PolicyOptions {
  Surrogate surrogate;
  RatioLevel ratio;
  double clip_min, clip_max, dual_clip, delta, log_ratio_min, log_ratio_max;
  KlEstimator kl;
  bool kl_importance_weighted;
  double kl_log_ratio_clamp, kl_clamp, policy_coef, kl_coef, entropy_coef;
  int aggregate, kl_aggregate, entropy_aggregate;  // the last two: -1 = like aggregate
  bool count_empty;
  double max_length;
};

// How many numbers the schema's list `options` has: the fields above without max_length.
inline constexpr size_t kPolicyOptions = 19;
// Throws std::runtime_error for a list of another length or an unknown enum value.
PolicyOptions policy_options(const std::vector<double>& numbers, int64_t max_length);

struct PolicyInputs {
  Sequences sequences;
  TokenView logprobs, old_logprobs, advantages, ref_logprobs, entropy, importance_weights;
  PolicyOptions options;
};

// Sums over the counted tokens of one sequence.
struct PolicySums {
  double policy, kl, entropy, log_ratio, ratio, ratio_min, ratio_max;
  int64_t tokens, clipped_low, clipped_high, clipped_dual;
};

inline constexpr int kPolicyMetrics = 14;

void policy_loss_rows(const PolicyInputs&, PolicySums* sums, int64_t begin, int64_t end);

// From the sums: the loss, kPolicyMetrics figures, and what the gradient needs of every sequence,
// weights [4, batch]: weight of a token's policy, KL and entropy term, and the mean log-ratio.
// `count` is NaN when not given.
void policy_loss_total(const PolicyInputs&, double count, const PolicySums* sums, double* loss,
                       double* metrics, double* weights);

struct PolicyGradient {
  double grad_loss;
  const double* weights;  // [4, batch] of policy_loss_total
  void* by_logprobs;      // dense, in the layout and dtype of logprobs; nullptr: not wanted
  void* by_entropy;       // the same
};

void policy_loss_backward_rows(const PolicyInputs&, const PolicyGradient&, int64_t begin,
                               int64_t end);

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

void value_loss_rows(const ValueInputs&, ValueSums* sums, int64_t begin, int64_t end);
void value_loss_total(const ValueInputs&, const Normalizer&, const ValueSums* sums, double* loss,
                      double* metrics, double* weights);
// by_values: dense, in the layout and dtype of values.
void value_loss_backward_rows(const ValueInputs&, double grad_loss, const double* weights,
                              void* by_values, int64_t begin, int64_t end);

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

void importance_weights_rows(const WeightInputs&, WeightSums* sums, int64_t begin, int64_t end);
void importance_weights_total(const WeightInputs&, const WeightSums* sums, double* metrics);
// Divides the weights written before by `normalizer`.
void importance_weights_scale(const WeightInputs&, double normalizer, int64_t begin, int64_t end);

}  // namespace oneshot::cpu
