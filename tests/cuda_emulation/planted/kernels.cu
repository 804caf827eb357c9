// One right kernel and many wrong ones: what the emulator must let pass and what it must catch.
#include <cuda_runtime.h>

namespace {

constexpr int kThreads = 64;

enum Bug {
  kRight,
  kMissingBarrier,      // reads a neighbour's shared value before it is surely there
  kRace,                // all threads add to one shared counter without an atomic
  kReadOutOfBounds,     // one element past the input
  kWriteOutOfBounds,    // one element past the output
  kNegativeIndex,       // one element before the input
  kSharedOutOfBounds,   // one element past a shared array
  kUnwrittenShared,     // sums shared memory of which one element was never written
  kUnwrittenOutput,     // reads the output before writing it
  kDivergentBarrier,    // half of the block goes round a barrier
  kTwoBarriers,         // the halves wait at two different barriers
  kDivergentShuffle,    // a shuffle of the full warp in a branch of half of it
  kShuffleFromOutside,  // reads a lane the mask leaves out
  kEarlyReturn,         // a thread leaves, the others wait for it
  kWarpOrderAssumed,    // exchanges through shared memory inside a warp without __syncwarp
  kShuffleIsNoBarrier,  // the same with a shuffle in between, which orders no memory
  kRaceBetweenBlocks,   // every block writes the same place
  kWriteToInput,        //
  kMisalignedVector,    // a 16-byte load at a 4-byte boundary
  kHostTouchesDevice,   //
  kAtomicRight,         // the counter with an atomic: no error
  kWarpRight,           // the exchange inside a warp with __syncwarp: no error
};

__global__ void kernel(int bug, const float* x, float* out) {
  ONESHOT_SHARED(float, tile, kThreads);
  ONESHOT_SHARED(int, counter, 1);
  const int i = int(threadIdx.x), block = int(blockIdx.x) * kThreads;
  if (bug == kReadOutOfBounds) tile[i] = x[block + i + 1];
  if (bug == kNegativeIndex) tile[i] = x[block + i - 1];
  if (bug == kMisalignedVector) {
    const float4 loaded = *reinterpret_cast<const float4*>(x + 1);
    tile[i] = loaded.x;
  }
  if (bug == kEarlyReturn && i == 5) return;
  if (i == 0) counter[0] = 0;
  if (bug != kUnwrittenShared || i != 7) tile[i] = x[block + i];
  if (bug == kSharedOutOfBounds) tile[i + 1] = 0.0f;
  if (bug == kUnwrittenOutput) tile[i] += out[block + i];
  if (bug == kWriteToInput) const_cast<float*>(x)[block + i] = 1.0f;

  if (bug == kWarpOrderAssumed || bug == kShuffleIsNoBarrier || bug == kWarpRight) {
    float gain = 0.0f;
    if (bug == kShuffleIsNoBarrier) gain = __shfl_xor_sync(0xFFFFFFFFu, gain, 1);
    if (bug == kWarpRight) __syncwarp();
    out[block + i] = tile[i ^ 1] + gain;
    return;
  }
  if (bug == kDivergentBarrier) {
    if (i < kThreads / 2) __syncthreads();
  } else if (bug == kTwoBarriers) {
    if (i < kThreads / 2) {
      __syncthreads();
    } else {
      __syncthreads();
    }
  } else if (bug != kMissingBarrier) {
    __syncthreads();
  }
  if (bug == kRace) counter[0] += 1;
  if (bug == kAtomicRight) atomicAdd(counter, 1);
  const bool own = bug == kDivergentBarrier || bug == kTwoBarriers || bug == kEarlyReturn;
  float value = tile[own ? i : (i + 33) % kThreads];
  if (bug == kDivergentShuffle) {
    if (i % 2 == 0) value = __shfl_xor_sync(0xFFFFFFFFu, value, 2);
  } else if (bug == kShuffleFromOutside) {
    if (i % 2 == 0) value = __shfl_xor_sync(0x55555555u, value, 1);
  } else {
    value = __shfl_xor_sync(0xFFFFFFFFu, value, 1);
  }
  __syncthreads();
  if (bug == kRace || bug == kAtomicRight) value = float(counter[0]);
  out[block + i] = value;
  if (bug == kWriteOutOfBounds) out[block + i + 1] = value;
  if (bug == kRaceBetweenBlocks) out[i] = value;
}

}  // namespace

extern "C" int planted(int bug, const float* x, float* out, int blocks) {
  if (bug == kHostTouchesDevice) out[0] = 1.0f;
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(unsigned(blocks));
  config.blockDim = dim3(kThreads);
  return int(cudaLaunchKernelEx(&config, kernel, bug, x, out));
}
