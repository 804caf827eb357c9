// What the kernels use of CUDA, for an ordinary C++ compiler: this folder stands first on the
// include path when the CUDA kernels are compiled for the emulator.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <tuple>
#include <type_traits>

#include "engine.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __noinline__ __attribute__((noinline))
#define __launch_bounds__(...)
#define __align__(n) alignas(n)

// The memory one block shares; under nvcc csrc/cuda/device.cuh defines these with __shared__.
#define ONESHOT_SHARED(type, name, count) \
  type* const name =                      \
      static_cast<type*>(emu::static_shared(sizeof(type) * size_t(count), __FILE__, __LINE__))
#define ONESHOT_DYNAMIC_SHARED(name) \
  unsigned char* const name = static_cast<unsigned char*>(emu::dynamic_shared())

// ---- built-in types and variables

struct dim3 : emu::Index {
  dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : emu::Index{x, y, z} {}
};

// A vector access of real hardware faults when it is not aligned; so does this one.
template <typename T, int kCount>
struct alignas(sizeof(T) * kCount) EmuVector;
template <typename T>
struct alignas(sizeof(T) * 2) EmuVector<T, 2> {
  T x, y;
  EmuVector() = default;
  EmuVector(T a, T b) : x(a), y(b) {}
  EmuVector(const EmuVector& o) { *this = o; }
  EmuVector& operator=(const EmuVector& o) {
    emu::check_aligned(this, sizeof(*this)), emu::check_aligned(&o, sizeof(o));
    x = o.x, y = o.y;
    return *this;
  }
};
template <typename T>
struct alignas(sizeof(T) * 4) EmuVector<T, 4> {
  T x, y, z, w;
  EmuVector() = default;
  EmuVector(T a, T b, T c, T d) : x(a), y(b), z(c), w(d) {}
  EmuVector(const EmuVector& o) { *this = o; }
  EmuVector& operator=(const EmuVector& o) {
    emu::check_aligned(this, sizeof(*this)), emu::check_aligned(&o, sizeof(o));
    x = o.x, y = o.y, z = o.z, w = o.w;
    return *this;
  }
};
using uint4 = EmuVector<unsigned, 4>;
using uint2 = EmuVector<unsigned, 2>;
using float4 = EmuVector<float, 4>;
using float2 = EmuVector<float, 2>;
using double2 = EmuVector<double, 2>;

#define threadIdx (emu::thread_index())
#define blockIdx (emu::block_index())
// No macros: cudaLaunchConfig_t has members of these names.
inline const emu::Index& blockDim = emu::shape().block;
inline const emu::Index& gridDim = emu::shape().grid;
inline constexpr int warpSize = 32;

// ---- barriers and warp collectives

inline void __syncthreads(const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
  emu::block_barrier(file, line);
}

inline void __syncwarp(unsigned mask = 0xFFFFFFFFu, const char* file = __builtin_FILE(),
                       int line = __builtin_LINE()) {
  uint64_t ignored[32];
  emu::warp_exchange(mask, 0, ignored, true, file, line);
}

template <typename T>
T emu_shuffle(unsigned mask, T value, int source, const char* file, int line) {
  static_assert(sizeof(T) <= 8, "shuffles move at most 8 bytes");
  uint64_t bits = 0, received[32];
  memcpy(&bits, &value, sizeof(T));
  emu::warp_exchange(mask, bits, received, false, file, line);
  if (!(mask >> source & 1u))
    emu::report("shuffle at %s:%d from lane %d, outside the mask", file, line, source);
  T result;
  memcpy(&result, &received[source], sizeof(T));
  return result;
}

#define EMU_HERE const char *file = __builtin_FILE(), int line = __builtin_LINE()

template <typename T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32, EMU_HERE) {
  const int lane = emu::lane_index(), base = lane / width * width;
  return emu_shuffle(mask, value, base + (source & (width - 1)), file, line);
}
template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int flip, int width = 32, EMU_HERE) {
  const int lane = emu::lane_index(), source = lane ^ flip;
  return emu_shuffle(mask, value, source / width <= lane / width ? source : lane, file, line);
}
template <typename T>
T __shfl_down_sync(unsigned mask, T value, unsigned by, int width = 32, EMU_HERE) {
  const int lane = emu::lane_index(), source = lane + int(by);
  return emu_shuffle(mask, value, source / width == lane / width ? source : lane, file, line);
}
template <typename T>
T __shfl_up_sync(unsigned mask, T value, unsigned by, int width = 32, EMU_HERE) {
  const int lane = emu::lane_index(), source = lane - int(by);
  return emu_shuffle(mask, value, source >= lane / width * width ? source : lane, file, line);
}

inline unsigned __ballot_sync(unsigned mask, int predicate, EMU_HERE) {
  uint64_t received[32];
  unsigned votes = 0;
  emu::warp_exchange(mask, predicate != 0, received, false, file, line);
  for (int i = 0; i < 32; ++i) votes |= (mask >> i & 1u) && received[i] ? 1u << i : 0u;
  return votes;
}
inline int __any_sync(unsigned mask, int predicate, EMU_HERE) {
  return __ballot_sync(mask, predicate, file, line) != 0;
}
inline int __all_sync(unsigned mask, int predicate, EMU_HERE) {
  return __ballot_sync(mask, predicate, file, line) == mask;
}

inline int __reduce_max_sync(unsigned mask, int value, EMU_HERE) {
  uint64_t received[32];
  emu::warp_exchange(mask, uint64_t(int64_t(value)), received, false, file, line);
  for (int i = 0; i < 32; ++i) {
    if (mask >> i & 1u) value = std::max(value, int(int64_t(received[i])));
  }
  return value;
}

// ---- atomics (relaxed: they order nothing else), traps, arithmetic

// Nothing runs between the two halves: fibers change places only where the emulator lets them.
#define EMU_ATOMIC(name, expression)                                                       \
  template <typename T>                                                                    \
  __attribute__((no_sanitize("thread"))) T name(T* address, std::common_type_t<T> value) { \
    emu::atomic_access(address, sizeof(T));                                                \
    const T old = *address;                                                                \
    *address = expression;                                                                 \
    return old;                                                                            \
  }
EMU_ATOMIC(atomicAdd, old + value)
EMU_ATOMIC(atomicMin, old < value ? old : value)
EMU_ATOMIC(atomicMax, old > value ? old : value)
EMU_ATOMIC(atomicExch, value)

inline void __trap() { emu::report("__trap: the kernel refuses its input"); }

using std::exp2;
using std::isinf;
using std::isnan;
using std::max;
using std::min;
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline double __dadd_rn(double a, double b) { return a + b; }
inline double __dmul_rn(double a, double b) { return a * b; }
inline double __dsub_rn(double a, double b) { return a - b; }
inline float rsqrtf(float x) { return 1.0f / std::sqrt(x); }
template <typename T>
T __ldg(const T* p) {
  return *p;
}
template <typename T>
void __stcs(T* p, const T& value) {
  *p = value;
}
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __clz(int x) { return x == 0 ? 32 : __builtin_clz(unsigned(x)); }
inline int __popc(unsigned x) { return __builtin_popcount(x); }

// ---- runtime API

using cudaStream_t = void*;
enum cudaError_t {
  cudaSuccess = 0,
  cudaErrorInvalidValue = 1,
  cudaErrorNotSupported = 801,
  cudaErrorLaunchFailure = 719
};

struct cudaLaunchAttribute {};
struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes = 0;
  cudaStream_t stream = nullptr;
  cudaLaunchAttribute* attrs = nullptr;
  unsigned numAttrs = 0;
};

template <typename... Parameters, typename... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               Arguments&&... arguments) {
  const std::tuple<std::decay_t<Parameters>...> copy(arguments...);
  const emu::LaunchShape shape{config->gridDim, config->blockDim, config->dynamicSmemBytes};
  const bool ran = emu::launch(shape, [&] { std::apply(kernel, copy); });
  return ran ? cudaSuccess : cudaErrorLaunchFailure;
}

enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize = 8 };
template <typename Kernel>
cudaError_t cudaFuncSetAttribute(Kernel*, cudaFuncAttribute, int bytes) {
  return size_t(bytes) <= emu::shared_capacity() ? cudaSuccess : cudaErrorInvalidValue;
}
