// The conversions of cuda_fp16.h that the kernels use.
#pragma once

#include <cstdint>
#include <cstring>

struct __half {
  uint16_t bits;
};
inline __half __ushort_as_half(unsigned short bits) { return {bits}; }
inline unsigned short __half_as_ushort(__half h) { return h.bits; }
inline float __half2float(__half h) {
  _Float16 value;
  memcpy(&value, &h.bits, 2);
  return float(value);
}
inline __half __float2half_rn(float x) {
  const auto value = _Float16(x);
  __half h;
  memcpy(&h.bits, &value, 2);
  return h;
}
