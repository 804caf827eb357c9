// Log-probabilities of chosen tokens and entropy on the CPU.
#pragma once

#include <cstdint>

#include "logprob/contract.h"

namespace oneshot::cpu {

// Rows [begin, end). Return -1, or the first row of the range with a target outside [0, vocab),
// whose results (and those of the rows after it) are then not written.
int64_t logprob_forward(const LogprobForward&, int64_t begin, int64_t end);
int64_t logprob_backward(const LogprobBackward&, int64_t begin, int64_t end);

}  // namespace oneshot::cpu
