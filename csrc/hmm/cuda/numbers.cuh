// The numbers of the `hmm` kernels.
//
// Linear: weights exp(potential) as double, messages scaled by powers of two, whose exponents add
// up exactly. Every weight and message must lie within 2^-250 and 2^250 or be 0; a product of four
// then fits a double, so nothing finite is ever lost. One that does not is NaN, and so is
// everything made of it: a sweep counts if its last message is a number. Exact: logarithms in
// double, which no spread of potentials can break. They serve the sequences whose linear sweep does
// not count.
#pragma once

#include <climits>
#include <cstring>

#include "cuda/device.cuh"

namespace oneshot::cuda {

inline constexpr int kWidestExponent = 250;
inline constexpr double kNever = -double(INFINITY);

// 2^n for -1022 <= n <= 1023.
__device__ __forceinline__ double two_to(int n) {
  const auto bits = uint64_t(int64_t(n) + 1023) << 52;
  double x;
  memcpy(&x, &bits, sizeof(x));
  return x;
}

// The high word of a double: it orders doubles >= 0 as they are, up to 32 binary digits.
__device__ __forceinline__ int high_word(double x) {
  uint64_t bits;
  memcpy(&bits, &x, sizeof(bits));
  return int(bits >> 32);
}
__device__ __forceinline__ int exponent_of_high_word(int word) {
  return word == 0 ? 0 : (word >> 20) - 1023;
}

// ---- exp(x) = mantissa 2^exponent, the mantissa between 0.7 and 1.5

template <typename R>
inline constexpr R kLargestPotential = R(65536);  // beyond it the reduction would lose digits

template <typename R>
__device__ __forceinline__ bool reducible(R x) {
  return x <= kLargestPotential<R> && x >= -kLargestPotential<R>;
}

__device__ __forceinline__ int exponent_of(float x) { return int(rintf(x * float(kLog2E))); }
__device__ __forceinline__ int exponent_of(double x) { return int(rint(x * kLog2E)); }

// Not expf: its error on a GPU is biased, which adds up over the steps. The polynomial (minimax of
// degree 6) is below 0.005 units of the last place on average.
__device__ __forceinline__ float mantissa_of(float x, int exponent) {
  const auto n = float(exponent);
  const float r = fmaf(-n, -1.90465430e-9f, fmaf(-n, 0.693147182f, x));
  float y = 0x1.6a2352p-10f;
  y = fmaf(y, r, 0x1.123a6cp-7f);
  y = fmaf(y, r, 0x1.5558f4p-5f);
  y = fmaf(y, r, 0x1.55549p-3f);
  y = fmaf(y, r, 0x1.fffffcp-2f);
  return fmaf(fmaf(y, r, 1.0f), r, 1.0f);
}
__device__ __forceinline__ double mantissa_of(double x, int exponent) {
  const auto n = double(exponent);
  return exp(fma(-n, 2.319046813846299e-17, fma(-n, kLn2, x)));
}

// exp(x) / 2^shift; NaN where that does not fit, and where x is NaN or +inf.
template <typename R>
__device__ __forceinline__ double weight(R x, int shift = 0) {
  const bool right = reducible(x);
  const R safe = right ? x : R(0);
  const int exponent = exponent_of(safe), n = exponent - shift;
  const double value = double(mantissa_of(safe, exponent)) * two_to(n);
  const bool fits = right && n >= -kWidestExponent && n <= kWidestExponent;
  return fits ? value : x == minus_infinity<R>() ? 0.0 : double(NAN);
}

// The power of two nearest to the largest weight of a row, from the largest of these.
template <typename R>
__device__ __forceinline__ int shift_candidate(R x) {
  return reducible(x) ? exponent_of(x) : INT_MIN;
}
__device__ __forceinline__ int shift_from(int largest) { return largest == INT_MIN ? 0 : largest; }

__device__ __forceinline__ double fitting(double message) {
  return message == 0.0 || message >= 0x1p-250 ? message : double(NAN);
}

// ---- logarithms

// What may be subtracted: 0 where there is nothing but -inf.
__device__ __forceinline__ double finite_or_zero(double high) {
  return high == kNever ? 0.0 : high;
}

// Not a potential: it takes its sequence along.
template <typename R>
__device__ __forceinline__ bool flawed(R x) {
  return !(x < R(INFINITY));
}

}  // namespace oneshot::cuda
