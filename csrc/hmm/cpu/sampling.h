// Where the float32 sampling kernel works.
#pragma once

#include <cstdint>

#include "common/philox.h"
#include "hmm/cpu/forward_backward/sweep.h"

namespace oneshot::cpu {

struct SampleMemory {
  float *messages, *highs, *matrix, *row, *final;
  double* cumulative;
  int64_t pitch;  // of a message: whole vectors at every level
};

}  // namespace oneshot::cpu
