// Log-probabilities of chosen tokens and entropy of softmax(logits / temperature), one row a token:
// what the kernels of every device take, on raw pointers.
#pragma once

#include <cstdint>

#include "common/dtype.h"
#include "common/rows.h"

namespace oneshot {

// What both directions read. "Real" below is float, or double for float64 logits.
struct LogprobInput {
  DType dtype;         // of the logits
  const void* logits;  // row r at rows.offset(r), `vocab` adjacent elements
  Rows rows;
  int64_t vocab;
  const int64_t* targets;  // [rows, targets_per_row], dense; may be nullptr if there are none
  int64_t targets_per_row;
  const bool* mask;       // [rows] or nullptr; a False row is never read
  const bool* keep_mask;  // or nullptr; row r at keep_rows.offset(r); False: probability 0
  Rows keep_rows;
  double temperature;
};

// Per row, what backward needs: the largest kept logit m, the sum of exp((x - m) / temperature),
// and the mean of (x - m) / temperature under the softmax.
inline constexpr int64_t kLogprobStats = 3;

struct LogprobForward {
  LogprobInput input;
  void* logprobs;  // Real [rows, targets_per_row]
  void* entropy;   // Real [rows]
  void* stats;     // Real [rows, kLogprobStats]
};

struct LogprobBackward {
  LogprobInput input;
  const void* grad_logprobs;  // Real [rows, targets_per_row], or nullptr: no gradient
  const void* grad_entropy;   // Real [rows], or nullptr: no gradient
  const void* logprobs;       // as forward wrote them
  const void* stats;
  void* grad_logits;  // dtype of the logits; may be the logits themselves
  Rows grad_rows;
};

}  // namespace oneshot
