// Routed low-rank adapters on the GPU. Arguments and meaning are those of routing/contract.h;
// pointers are device pointers, work is ordered on the stream, nothing waits for the host, no sum
// uses atomics. A mixture outside [0, mixtures) is refused on the device (see `require`).
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "routing/contract.h"

namespace oneshot::cuda {

// ---- mixing (mix.cu)

cudaError_t mix(const MixForward&, cudaStream_t);

cudaError_t mix_backward(const MixBackward&, cudaStream_t);

// ---- which mixture belongs to which row (rows.cu)

// Group i of `repeat` adjacent rows takes mixture mixture_of[i].
struct RowMixtures {
  const int64_t* mixture_of;  // [groups]
  int64_t groups, repeat, mixtures;

  int64_t rows() const { return groups * repeat; }
};

// Rows of one mixture are worked on together, this many at a time.
inline constexpr int kTileRows = 16;

// The groups listed mixture by mixture, in order inside a mixture.
struct RowList {
  const int64_t* order;     // [groups]
  const int64_t* starts;    // [mixtures + 1] first place in `order`
  const int64_t* tiles_of;  // [mixtures + 1] first tile of kTileRows rows
};
int64_t list_rows_workspace(const RowMixtures&);
cudaError_t list_rows(const RowMixtures&, void* workspace, RowList&, cudaStream_t);

// ---- applying mixtures (routing.cu)

int64_t lora_workspace(const LoraShape&, const RowMixtures&);
cudaError_t lora(const LoraForward&, const RowMixtures&, void* workspace, cudaStream_t);

int64_t lora_backward_workspace(const LoraBackward&, const RowMixtures&);
cudaError_t lora_backward(const LoraBackward&, const RowMixtures&, void* workspace, cudaStream_t);

// ---- applying inventories, no mixture in memory (inventory.cu)

// Few rows, or about as many mixtures as rows (decoding): each row mixes in registers what it
// reads, which needs two launches instead of four and writes no mixture.
bool prefers_inventory(const RowMixtures&);

struct InventoryLora {
  LoraShape shape;
  Inventory a, b;  // a is transposed
  const void* weights;
  const void* x;
  const void* base;  // or nullptr
  void* shrunk;
  void* y;
  double scaling;
};
int64_t inventory_lora_workspace(const InventoryLora&, const RowMixtures&);
cudaError_t inventory_lora(const InventoryLora&, const RowMixtures&, void* workspace, cudaStream_t);

}  // namespace oneshot::cuda
