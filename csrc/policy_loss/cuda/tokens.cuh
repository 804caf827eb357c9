// How the kernels of policy_loss read token values of any type and layout.
#pragma once

#include "cuda/device.cuh"
#include "policy_loss/contract.h"
#include "policy_loss/cuda/policy_loss.cuh"

namespace oneshot::cuda {

struct TokenRange {
  int64_t first, length, dense;  // in the views; tokens; in a dense tensor of the layout
};

__device__ __forceinline__ TokenRange token_range(const Sequences& s, int64_t b, int64_t tokens) {
  if (s.cu_seqlens == nullptr) return {0, s.width, b * s.width};
  const int64_t begin = s.cu_seqlens[b], end = s.cu_seqlens[b + 1];
  require(begin >= 0 && begin <= end && end <= tokens && (b > 0 || begin == 0) &&
          (b + 1 < s.batch || end == tokens));
  return {begin, end - begin, begin};
}

template <typename R>
__device__ __forceinline__ R token_value(const TokenView& view, int64_t b, int64_t at) {
  const int64_t i = b * view.row_stride + at * view.token_stride;
  switch (view.dtype) {
    case DType::kFloat64:
      return R(static_cast<const double*>(view.data)[i]);
    case DType::kBFloat16:
      return R(to_real(static_cast<const BFloat16*>(view.data)[i]));
    case DType::kFloat16:
      return R(to_real(static_cast<const Float16*>(view.data)[i]));
    default:
      return R(static_cast<const float*>(view.data)[i]);
  }
}

template <typename R>
__device__ __forceinline__ void put_value(void* out, DType dtype, int64_t i, R value) {
  switch (dtype) {
    case DType::kFloat64:
      static_cast<double*>(out)[i] = double(value);
      return;
    case DType::kBFloat16:
      static_cast<BFloat16*>(out)[i] = from_real<BFloat16>(float(value));
      return;
    case DType::kFloat16:
      static_cast<Float16*>(out)[i] = from_real<Float16>(float(value));
      return;
    default:
      static_cast<float*>(out)[i] = float(value);
  }
}

// Calls body(t) for the counted tokens of a sequence that belong to this thread.
template <typename Body>
__device__ __forceinline__ void for_counted(const Sequences& s, const TokenRange& range,
                                            const Body& body) {
  for (int64_t t = threadIdx.x; t < range.length; t += blockDim.x) {
    if (s.mask == nullptr || s.mask[range.dense + t]) body(t);
  }
}

// A NaN in the second operand stays.
template <typename R>
__device__ __forceinline__ R larger(R a, R b) {
  return a > b ? a : b;
}
template <typename R>
__device__ __forceinline__ R smaller(R a, R b) {
  return a < b ? a : b;
}
__device__ __forceinline__ double ratio_or_zero(double a, double b) {
  return b == 0.0 ? 0.0 : a / b;
}

__device__ __forceinline__ double scalar_or_nan(const DeviceScalar& s) {
  switch (s.kind) {
    case DeviceScalar::kFloat32:
      return double(*static_cast<const float*>(s.data));
    case DeviceScalar::kFloat64:
      return *static_cast<const double*>(s.data);
    case DeviceScalar::kInt64:
      return double(*static_cast<const int64_t*>(s.data));
    default:
      return double(NAN);
  }
}

// Weight of one token of a sequence; see token_weights.
struct Weighting {
  double total;
  bool mean;

  __device__ Weighting(Aggregate how, bool count_empty, double count, double max_length,
                       double tokens, double filled, int64_t batch)
      : total(1.0), mean(how == Aggregate::kSeqMeanTokenMean) {
    if (how == Aggregate::kTokenMean) {
      total = isnan(count) ? tokens : count;
    } else if (how != Aggregate::kTokenSum) {
      total = isnan(count) ? (count_empty ? double(batch) : filled) : count;
    }
    if (how == Aggregate::kSeqMeanTokenSumNorm) total *= max_length;
  }
  __device__ double operator()(int64_t length) const {
    return ratio_or_zero(1.0, mean ? total * double(length) : total);
  }
};

}  // namespace oneshot::cuda
