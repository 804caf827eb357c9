// A scan over time for few long sequences; see messages_scan.cu.
#pragma once

#include "hmm/cuda/chain.cuh"

namespace oneshot::cuda {

// Scanned are sequences of more than kScanSteps steps and at most kScanStates states: a chunk costs
// as many sweeps as there are states.
inline constexpr int64_t kScanSteps = 2048, kScanChunk = 256;
inline constexpr int kScanStates = 16;

struct HmmChunks {
  int64_t count = 0;                   // of a sequence of all steps
  double* matrices = nullptr;          // [batch, count, states, states]
  int64_t* exponents = nullptr;        // [batch, count, states], of the rows
  double* before = nullptr;            // [batch, count + 1, states], messages between chunks
  double* behind = nullptr;            //
  int64_t* start_exponents = nullptr;  // [batch, count + 1], of `before`
  int* lost = nullptr;                 // [batch, 2, 1 + count]
};

// Messages of the scanned sequences, unless m.stored says that none are needed; m.whole for all,
// and m.in_log where it is 0.
template <typename T>
cudaError_t hmm_scan_messages(const HmmInput<T>&, const HmmMessages& m, const HmmChunks&,
                              T* log_likelihood, cudaStream_t);

}  // namespace oneshot::cuda
