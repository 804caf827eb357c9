// What the kernels share: element types, reductions, launches. Every kernel also compiles as plain
// C++ for the emulator of tests/cuda_emulation, so shared memory is declared by the macros below.
#pragma once

#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>

#include "common/dtype.h"

#if defined(__CUDACC__)
#define ONESHOT_SHARED(type, name, count) __shared__ type name[count]
#define ONESHOT_DYNAMIC_SHARED(name) extern __shared__ __align__(16) unsigned char name[]
#endif

namespace oneshot::cuda {

inline constexpr unsigned kAllLanes = 0xFFFFFFFFu;
// Rows beyond this many blocks are walked by the same blocks in strides.
inline constexpr int64_t kMaxBlocks = int64_t{1} << 20;

inline unsigned blocks_for(int64_t count) {
  return unsigned(count < 1 ? 1 : count < kMaxBlocks ? count : kMaxBlocks);
}

// ---- element types: half formats are computed in float

template <typename T>
struct RealOf {
  using type = float;
};
template <>
struct RealOf<double> {
  using type = double;
};
template <typename T>
using Real = typename RealOf<T>::type;

__device__ __forceinline__ float to_real(float x) { return x; }
__device__ __forceinline__ double to_real(double x) { return x; }
__device__ __forceinline__ float to_real(BFloat16 x) {
  union {
    uint32_t bits;
    float value;
  } u;
  u.bits = uint32_t(x.bits) << 16;
  return u.value;
}
__device__ __forceinline__ float to_real(Float16 x) {
  return __half2float(__ushort_as_half(x.bits));
}

template <typename T>
__device__ __forceinline__ T from_real(Real<T> x) {
  return x;
}
template <>
__device__ __forceinline__ BFloat16 from_real<BFloat16>(float x) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  BFloat16 rounded;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(rounded.bits) : "f"(x));
  return rounded;
#else
  union {
    float value;
    uint32_t bits;
  } u;
  u.value = x;
  // Round to nearest, ties to even; a NaN stays a (quiet) NaN.
  if (x != x) return {uint16_t((u.bits >> 16) | 0x40u)};
  return {uint16_t((u.bits + 0x7FFFu + ((u.bits >> 16) & 1u)) >> 16)};
#endif
}
template <>
__device__ __forceinline__ Float16 from_real<Float16>(float x) {
  return {__half_as_ushort(__float2half_rn(x))};
}

template <typename R>
__device__ __forceinline__ R minus_infinity() {
  return -R(INFINITY);
}

inline constexpr double kLog2E = 1.4426950408889634074, kLn2 = 0.69314718055994530942;

// ---- arithmetic the compiler may not contract, so that results equal the CPU's bit by bit

__device__ __forceinline__ float exact_add(float a, float b) { return __fadd_rn(a, b); }
__device__ __forceinline__ double exact_add(double a, double b) { return __dadd_rn(a, b); }
__device__ __forceinline__ float exact_sub(float a, float b) { return __fsub_rn(a, b); }
__device__ __forceinline__ double exact_sub(double a, double b) { return __dsub_rn(a, b); }
__device__ __forceinline__ float exact_mul(float a, float b) { return __fmul_rn(a, b); }
__device__ __forceinline__ double exact_mul(double a, double b) { return __dmul_rn(a, b); }

// ---- reductions in a fixed order: the same bits at every run

struct Sum {
  template <typename T>
  __device__ __forceinline__ T operator()(T a, T b) const {
    return a + b;
  }
};
struct Largest {
  template <typename T>
  __device__ __forceinline__ T operator()(T a, T b) const {
    return a < b ? b : a;
  }
};

template <typename T, typename Combine>
__device__ __forceinline__ T warp_reduce(T value, const Combine& combine) {
  for (int flip = 16; flip > 0; flip /= 2) {
    value = combine(value, __shfl_xor_sync(kAllLanes, value, flip));
  }
  return value;
}

// Of 32-bit integers: one instruction where the device has it.
__device__ __forceinline__ int warp_largest(int value) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
  return warp_reduce(value, Largest());
#else
  return __reduce_max_sync(kAllLanes, value);
#endif
}

// Every thread gets the result. `scratch` holds one T a warp, in shared memory.
template <typename T, typename Combine>
__device__ __forceinline__ T block_reduce(T value, T* scratch, const Combine& combine) {
  value = warp_reduce(value, combine);
  const int warps = int(blockDim.x) / 32;
  __syncthreads();  // whoever reads an earlier result is done
  if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = value;
  __syncthreads();
  value = scratch[0];
  for (int w = 1; w < warps; ++w) value = combine(value, scratch[w]);
  return value;
}

template <typename T>
__device__ __forceinline__ T block_sum(T value, T* scratch) {
  return block_reduce(value, scratch, Sum());
}

// Refuses an input that only the device can see is wrong (an index out of range): the error
// surfaces as cudaErrorLaunchFailure at the next synchronisation, as with torch's own kernels.
__device__ __forceinline__ void require(bool right) {
  if (!right) __trap();
}

// A hint: the cache line at this address will be read soon.
__device__ __forceinline__ void prefetch(const void* address) {
#if defined(__CUDA_ARCH__)
  asm volatile("prefetch.global.L2 [%0];" ::"l"(address));
#else
  (void)address;
#endif
}

// ---- launches

template <typename... Parameters, typename... Arguments>
cudaError_t launch(void (*kernel)(Parameters...), dim3 grid, unsigned threads, size_t shared_bytes,
                   cudaStream_t stream, const Arguments&... arguments) {
  if (shared_bytes > 48 * 1024) {  // more must be asked for
    const cudaError_t refused = cudaFuncSetAttribute(
        kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(shared_bytes));
    if (refused != cudaSuccess) return refused;
  }
  cudaLaunchConfig_t config = {};
  config.gridDim = grid;
  config.blockDim = dim3(threads);
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream;
  return cudaLaunchKernelEx(&config, kernel, Parameters(arguments)...);
}

}  // namespace oneshot::cuda

// Ends a launcher at its first failed launch.
#define ONESHOT_RETURN_IF_FAILED(call)          \
  do {                                          \
    const cudaError_t status_ = (call);         \
    if (status_ != cudaSuccess) return status_; \
  } while (false)
