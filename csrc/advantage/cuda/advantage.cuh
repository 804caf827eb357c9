// Advantages on the GPU. Arguments and meaning are those of advantage/contract.h; pointers are
// device pointers, work is ordered on the stream, nothing waits for the host. What the CPU finds
// wrong in group_sizes and cu_seqlens by reading them is refused on the device (see `require`).
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "advantage/contract.h"

namespace oneshot::cuda {

// Exactly one of the three.
struct RowGroups {
  int64_t size = 0;                // of every group
  const int64_t* ids = nullptr;    // [rows]
  const int64_t* sizes = nullptr;  // [size_count]
  int64_t size_count = 0;
};

// Bytes of device memory the launchers need besides their arguments.
int64_t group_advantages_workspace(int64_t rows);
int64_t whiten_workspace(int64_t count);

template <typename T>
cudaError_t group_advantages(const TokenRows<T>&, const int64_t* lengths, const RowGroups&,
                             const GroupRule&, void* workspace, cudaStream_t);

// `tokens`: how many there are in the packed layout.
template <typename T>
cudaError_t gae(const GaeArgs<T>&, int64_t tokens, cudaStream_t);

template <typename T>
cudaError_t whiten(const WhitenArgs<T>&, double eps, void* workspace, cudaStream_t);

}  // namespace oneshot::cuda
