// How a block reads its segment of a row of logits, and the running sums of an online softmax.
//
// A row is cut into segments of kSegment elements whatever the number of rows, one block a segment:
// few long rows then fill the device as many short ones do, and a row gives the same bits in any
// batch. Which thread takes which element depends on its place in the row alone; a row that starts
// at a 16-byte boundary is read 16 bytes at a time, any other one element at a time.
#pragma once

#include <cstring>

#include "cuda/device.cuh"
#include "logprob/contract.h"

namespace oneshot::cuda {

inline constexpr int kLogprobThreads = 256;
inline constexpr int64_t kSegment = 16384;
// Elements a thread holds at a time, and a block: more doubles would not fit into registers.
template <typename T>
inline constexpr int kPerThread = sizeof(T) == 8 ? 8 : 32;
template <typename T>
inline constexpr int kChunk = kLogprobThreads * kPerThread<T>;

// One instruction, 2 units of the last place; what float32 holds as a subnormal number is 0.
__device__ __forceinline__ float power_of_two(float x) {
#if defined(__CUDA_ARCH__)
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#else
  return exp2f(x);
#endif
}
__device__ __forceinline__ double power_of_two(double x) { return exp2(x); }

template <typename T>
struct Vector {
  static constexpr int kCount = 16 / int(sizeof(T));
  T element[kCount];
};

template <typename T>
__device__ __forceinline__ Vector<T> load_vector(const T* p) {
  const uint4 raw = *reinterpret_cast<const uint4*>(p);
  Vector<T> v;
  memcpy(v.element, &raw, 16);
  return v;
}

template <typename T>
__device__ __forceinline__ void store_vector(T* p, const Vector<T>& v) {
  uint4 raw;
  memcpy(&raw, v.element, 16);
  // Written once, not read soon. A plain store is taken apart by nvcc 13.0, which merges it with
  // the element-by-element branch of the caller.
  __stcs(reinterpret_cast<uint4*>(p), raw);
}

template <typename T>
__device__ __forceinline__ bool aligned16(const T* p) {
  return reinterpret_cast<uintptr_t>(p) % 16 == 0;
}

// The place in the row of the first element of a thread's vector number `v`.
template <typename T>
__device__ __forceinline__ int64_t vector_start(int64_t chunk, int v) {
  return chunk + (int64_t(v) * kLogprobThreads + threadIdx.x) * Vector<T>::kCount;
}

// The elements of one chunk that belong to this thread; what lies past the row, or outside the
// keep-mask, reads as -inf.
template <typename T>
__device__ __forceinline__ void load_chunk(const T* row, const bool* keep, int64_t chunk,
                                           int64_t vocab, bool aligned,
                                           Real<T> (&x)[kPerThread<T>]) {
  constexpr int kCount = Vector<T>::kCount;
#pragma unroll
  for (int v = 0; v < kPerThread<T> / kCount; ++v) {
    const int64_t start = vector_start<T>(chunk, v);
    if (aligned && start + kCount <= vocab) {
      const Vector<T> loaded = load_vector(row + start);
#pragma unroll
      for (int e = 0; e < kCount; ++e) x[v * kCount + e] = to_real(loaded.element[e]);
    } else {
#pragma unroll
      for (int e = 0; e < kCount; ++e) {
        x[v * kCount + e] = start + e < vocab ? to_real(row[start + e]) : minus_infinity<Real<T>>();
      }
    }
    if (keep == nullptr) continue;
#pragma unroll
    for (int e = 0; e < kCount; ++e) {
      if (start + e < vocab && !keep[start + e]) x[v * kCount + e] = minus_infinity<Real<T>>();
    }
  }
}

// Sums over some elements of 2^z and of z * 2^z with z = (x - high) * scale, and the largest x.
template <typename R>
struct SoftmaxSums {
  R high, total, weighted;
};

// The same sums relative to a larger maximum. A NaN stays in `total`.
template <typename R>
__device__ __forceinline__ SoftmaxSums<R> raised(SoftmaxSums<R> s, R high, R scale) {
  if (s.high == high) return s;
  const R drop = (s.high - high) * scale, shrink = power_of_two(drop);
  return {high, s.total * shrink, shrink == R(0) ? R(0) : (s.weighted + drop * s.total) * shrink};
}

// The larger one; a NaN in b is passed over.
__device__ __forceinline__ float larger(float a, float b) { return fmaxf(a, b); }
__device__ __forceinline__ double larger(double a, double b) { return a < b ? b : a; }

// A finite number that z * 2^z takes for z = -inf: the product is 0 all the same.
template <typename R>
inline constexpr R kFarBelow = R(-5000);

// Of `kLanes` neighbouring lanes, in all of them. The largest number comes first, so that every
// lane raises its sums but once.
template <int kLanes, typename R>
__device__ __forceinline__ SoftmaxSums<R> lanes_merged(SoftmaxSums<R> s, R scale) {
  R high = s.high;
#pragma unroll
  for (int flip = kLanes / 2; flip > 0; flip /= 2) {
    high = larger(high, __shfl_xor_sync(kAllLanes, high, flip));
  }
  s = raised(s, high, scale);
#pragma unroll
  for (int flip = kLanes / 2; flip > 0; flip /= 2) {
    s.total += __shfl_xor_sync(kAllLanes, s.total, flip);
    s.weighted += __shfl_xor_sync(kAllLanes, s.weighted, flip);
  }
  return s;
}

}  // namespace oneshot::cuda
