// What the routing kernels share: four adjacent elements at a time, and the choice of a type.
#pragma once

#include <cstring>

#include "cuda/device.cuh"

namespace oneshot::cuda {

// Four elements from `p`; past `left` they read as 0. `aligned`: p is a multiple of four elements
// from an aligned start, and none is past the end.
template <typename T>
__device__ __forceinline__ void load_four(const T* p, int64_t left, bool aligned, Real<T> (&x)[4]) {
  if (aligned) {
    T element[4];
    if constexpr (sizeof(T) == 2) {
      const uint2 raw = *reinterpret_cast<const uint2*>(p);
      memcpy(element, &raw, 8);
    } else {
#pragma unroll
      for (int half = 0; half < int(sizeof(T)) / 4; ++half) {
        const uint4 raw = reinterpret_cast<const uint4*>(p)[half];
        memcpy(reinterpret_cast<unsigned char*>(element) + 16 * half, &raw, 16);
      }
    }
#pragma unroll
    for (int c = 0; c < 4; ++c) x[c] = to_real(element[c]);
  } else {
#pragma unroll
    for (int c = 0; c < 4; ++c) x[c] = c < left ? to_real(p[c]) : Real<T>(0);
  }
}

// A plain store would be taken apart by nvcc 13.0, which merges it with the other branch.
template <typename T>
__device__ __forceinline__ void store_four(T* p, int64_t left, bool aligned,
                                           const Real<T> (&x)[4]) {
  if (aligned) {
    T element[4];
#pragma unroll
    for (int c = 0; c < 4; ++c) element[c] = from_real<T>(x[c]);
    if constexpr (sizeof(T) == 2) {
      uint2 raw;
      memcpy(&raw, element, 8);
      __stcs(reinterpret_cast<uint2*>(p), raw);
    } else {
#pragma unroll
      for (int half = 0; half < int(sizeof(T)) / 4; ++half) {
        uint4 raw;
        memcpy(&raw, reinterpret_cast<unsigned char*>(element) + 16 * half, 16);
        __stcs(reinterpret_cast<uint4*>(p) + half, raw);
      }
    }
  } else {
#pragma unroll
    for (int c = 0; c < 4; ++c) {
      if (c < left) p[c] = from_real<T>(x[c]);
    }
  }
}

// Numbers in shared memory that are read four at a time.
template <typename R>
struct alignas(16) Four {
  R number[4];
};

// The numbers [start, start + kCount) of an array of fours; start is a multiple of kCount.
template <typename R, int kCount>
__device__ __forceinline__ void read_numbers(const Four<R>* fours, int start, R (&x)[kCount]) {
  if constexpr (kCount % 4 == 0) {
#pragma unroll
    for (int v = 0; v < kCount / 4; ++v) {
      const Four<R> four = fours[start / 4 + v];
#pragma unroll
      for (int c = 0; c < 4; ++c) x[4 * v + c] = four.number[c];
    }
  } else {
#pragma unroll
    for (int i = 0; i < kCount; ++i) x[i] = fours[(start + i) / 4].number[(start + i) % 4];
  }
}

// Whether every row of `features` elements from `p` on can be read four at a time.
template <typename T>
bool four_aligned(const void* p, int64_t features) {
  return features % 4 == 0 && reinterpret_cast<uintptr_t>(p) % (sizeof(T) == 2 ? 8 : 16) == 0;
}

template <typename T>
struct TypeOf {
  using type = T;
};

// body(TypeOf<T>()) for the element type T of a dtype.
template <typename Body>
cudaError_t with_type(DType dtype, const Body& body) {
  switch (dtype) {
    case DType::kFloat32:
      return body(TypeOf<float>());
    case DType::kFloat64:
      return body(TypeOf<double>());
    case DType::kBFloat16:
      return body(TypeOf<BFloat16>());
    case DType::kFloat16:
      return body(TypeOf<Float16>());
  }
  return cudaErrorInvalidValue;
}

}  // namespace oneshot::cuda
