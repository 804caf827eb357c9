// One float at a time: the level every machine has, and the definition of the interface.
// The three files simd/{scalar,avx2,avx512}.h offer the same names; keep them in step.

#ifndef ONESHOT_LANES  // opened alone
#include "cpu/body.h"
#define ONESHOT_LANES
using namespace oneshot;  // NOLINT
#endif

struct Mask {
  bool bits;
};

struct F32 {
  using Real = float;
  static constexpr int kWidth = 1;
  float v;
};

inline F32 set1(float x) { return {x}; }
inline F32 load(const float* p) { return {*p}; }
inline F32 load(const BFloat16* p) {
  const uint32_t bits = uint32_t{p->bits} << 16;
  float x;
  std::memcpy(&x, &bits, sizeof(x));
  return {x};
}
inline F32 load(const Float16* p) {
  // Exponent and mantissa shifted into place, then rescaled by 2^112; inf and NaN keep theirs.
  const uint32_t sign = uint32_t{p->bits & 0x8000u} << 16;
  const uint32_t rest = p->bits & 0x7fffu;
  float x;
  if (rest >= 0x7c00u) {
    const uint32_t bits = sign | 0x7f800000u | ((rest & 0x03ffu) << 13);
    std::memcpy(&x, &bits, sizeof(x));
    return {x};
  }
  const uint32_t bits = rest << 13;
  std::memcpy(&x, &bits, sizeof(x));
  x *= 0x1p112f;
  return {sign ? -x : x};
}
// The first n lanes from memory, the others from `rest`.
template <typename T>
inline F32 load_n(const T* p, int64_t n, F32 rest) {
  return n > 0 ? load(p) : rest;
}
inline void store(float* p, F32 a) { *p = a.v; }
inline void store(BFloat16* p, F32 a) {
  uint32_t bits;
  std::memcpy(&bits, &a.v, sizeof(bits));
  // Round to nearest even; a NaN stays a (quiet) NaN.
  p->bits = a.v != a.v ? uint16_t((bits >> 16) | 0x40)
                       : uint16_t((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}
inline void store(Float16* p, F32 a) {
  uint32_t bits;
  std::memcpy(&bits, &a.v, sizeof(bits));
  const uint16_t sign = uint16_t((bits >> 16) & 0x8000u);
  const uint32_t magnitude = bits & 0x7fffffffu;
  uint32_t half;
  if (magnitude > 0x7f800000u) {
    half = 0x7e00u;
  } else if (magnitude >= 0x477ff000u) {
    half = 0x7c00u;  // 65520 and above round to infinity
  } else if (magnitude < 0x38800000u) {
    // Subnormal half: adding 0.5 aligns the mantissa and rounds to nearest even.
    float x;
    std::memcpy(&x, &magnitude, sizeof(x));
    x += 0.5f;
    std::memcpy(&half, &x, sizeof(half));
    half -= 0x3f000000u;
  } else {
    half = (magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
  }
  p->bits = uint16_t(sign | half);
}
template <typename T>
inline void store_n(T* p, int64_t n, F32 a) {
  if (n > 0) store(p, a);
}

// Lanes that hold whole numbers, as unsigned integers of this size.
template <typename Index>
inline void store_index(Index* p, F32 a) {
  *p = Index(a.v);
}

inline F32 operator+(F32 a, F32 b) { return {a.v + b.v}; }
inline F32 operator-(F32 a, F32 b) { return {a.v - b.v}; }
inline F32 operator*(F32 a, F32 b) { return {a.v * b.v}; }
inline F32 operator/(F32 a, F32 b) { return {a.v / b.v}; }
// a * b + c; rounded twice here, once where the machine has FMA.
inline F32 fma(F32 a, F32 b, F32 c) { return {a.v * b.v + c.v}; }
// Like the vector instructions: if either is NaN the second operand is returned.
inline F32 max(F32 a, F32 b) { return {a.v > b.v ? a.v : b.v}; }
inline F32 min(F32 a, F32 b) { return {a.v < b.v ? a.v : b.v}; }
inline F32 abs(F32 a) { return {std::fabs(a.v)}; }
inline F32 sqrt(F32 a) { return {std::sqrt(a.v)}; }

inline Mask operator<(F32 a, F32 b) { return {a.v < b.v}; }
inline Mask operator<=(F32 a, F32 b) { return {a.v <= b.v}; }
inline Mask operator>(F32 a, F32 b) { return {a.v > b.v}; }
inline Mask operator>=(F32 a, F32 b) { return {a.v >= b.v}; }
inline Mask operator==(F32 a, F32 b) { return {a.v == b.v}; }
inline Mask is_nan(F32 a) { return {a.v != a.v}; }
inline Mask operator&(Mask a, Mask b) { return {a.bits && b.bits}; }
inline Mask operator|(Mask a, Mask b) { return {a.bits || b.bits}; }
inline Mask operator!(Mask a) { return {!a.bits}; }
inline bool any(Mask a) { return a.bits; }
inline bool all(Mask a) { return a.bits; }
inline int count(Mask a) { return a.bits ? 1 : 0; }
// One bool a lane, as torch stores them (a byte, 0 or 1).
inline Mask load_mask(const bool* p) { return {*p}; }
inline Mask load_mask_n(const bool* p, int64_t n) { return {n > 0 && *p}; }
inline F32 select(Mask m, F32 yes, F32 no) { return m.bits ? yes : no; }

inline float reduce_add(F32 a) { return a.v; }
inline float reduce_max(F32 a) { return a.v; }

// 2^n for integral n, flushing to 0 below the normal range and to inf above it.
inline F32 exp2_integral(F32 n) {
  if (!(n.v >= -126.0f)) return {n.v != n.v ? n.v : 0.0f};
  if (n.v > 127.0f) return {std::numeric_limits<float>::infinity()};
  const uint32_t bits = uint32_t(int32_t(n.v) + 127) << 23;
  float x;
  std::memcpy(&x, &bits, sizeof(x));
  return {x};
}
inline F32 round_even(F32 a);
// a * 2^n for integral n; two factors, because 2^n alone may overflow where the product does not.
inline F32 scale_exponent(F32 a, F32 n) {
  const F32 half = round_even(n * set1(0.5f));
  return a * exp2_integral(half) * exp2_integral(n - half);
}
inline F32 round_even(F32 a) { return {std::nearbyint(a.v)}; }
// x = m * 2^n with 1 <= m < 2, for positive normal x; returns m.
inline F32 split_exponent(F32 x, F32* n) {
  int exponent;
  const float m = std::frexp(x.v, &exponent);
  *n = {float(exponent - 1)};
  return {m * 2.0f};
}

// kWidth vectors as the rows of a square: rows become columns.
inline void transpose(F32 (&)[1]) {}

// Sums of float lanes kept in double: `lanes` per-lane partial sums.
struct Sum64 {
  double v = 0.0;
  void add(F32 a) { v += double(a.v); }
  double total() const { return v; }
};

// The three parts of exp2_flush (simd/math.inc) that differ between levels: where 2^z has become 0,
// z - floor(z), and p * 2^floor(z).
// floor(z) in the low bits of z + 1.5 * 2^23 (at a tie either neighbour serves).
inline float floor_in_mantissa(F32 z) { return (z.v - 0.5f) + 12582912.0f; }
inline constexpr float kExp2Lowest = -126.9f;
inline F32 exp2_fraction(F32 z) { return {z.v - (floor_in_mantissa(z) - 12582912.0f)}; }
inline F32 exp2_scale(F32 p, F32 z) {
  const float shifted = floor_in_mantissa(z);
  uint32_t bits;
  std::memcpy(&bits, &shifted, sizeof(bits));
  bits = (bits + 127u) << 23;
  float scale;
  std::memcpy(&scale, &bits, sizeof(scale));
  return {p.v * scale};
}

// The three parts of exp_negative that differ between levels: x / ln2 to the nearest whole number
// in a form of the level's own, that form as a number, and p * 2^n for what came from x.
inline constexpr float kExpLowest = -87.3f;
inline F32 exp_exponent(F32 x) { return {x.v * 1.44269504f + 12582912.0f}; }
inline F32 exp_rounded(F32 n) { return {n.v - 12582912.0f}; }
inline F32 exp_scaled(F32 p, F32 n, F32 x) {
  uint32_t bits, shift;
  std::memcpy(&bits, &p.v, sizeof(bits));
  std::memcpy(&shift, &n.v, sizeof(shift));
  bits += shift << 23;
  float y;
  std::memcpy(&y, &bits, sizeof(y));
  return {x.v >= kExpLowest ? y : max(F32{0.0f}, x).v};  // a NaN stays one
}

// What the hmm kernels ask of a vector besides.
// The first n lanes, 0 <= n <= kWidth, and zeros.
inline F32 gather(const float* p, int64_t, int64_t n) { return {n > 0 ? *p : 0.0f}; }
inline F32 load_part(const float* p, int64_t n) { return {n > 0 ? *p : 0.0f}; }
// The n numbers before `end` in the first lanes, and zeros, from a whole vector that ends there.
inline F32 load_end(const float* end, int64_t n) { return {n > 0 ? end[-1] : 0.0f}; }
inline void store_part(float* p, int64_t n, F32 a) {
  if (n > 0) *p = a.v;
}
inline float lane0(F32 a) { return a.v; }
// The sum, or the largest, of all lanes, in every lane.
inline F32 splat_sum(F32 a) { return a; }
inline F32 splat_max(F32 a) { return a; }
// One step of summing kWidth vectors into the lanes of one; kRows = 1, 2, ... kWidth / 2 in turn
// merge the sums of kRows neighbouring vectors each.
template <int kRows>
inline F32 merge_sums(F32 a, F32) {
  return a;
}
// 2^-e for lanes in [2^e, 2^(e + 1)); finite for 0, NaN or -inf for what is not finite.
inline F32 inverse_power(F32 a) {
  uint32_t bits;
  std::memcpy(&bits, &a.v, sizeof(bits));
  bits = 0x7f000000u - (bits & 0x7f800000u);
  float y;
  std::memcpy(&y, &bits, sizeof(y));
  return {y};
}

// Lane i = a[lanes[i]]; `lanes` lies at a multiple of a vector's size.
inline F32 permute(F32 a, const int32_t*) { return a; }

#ifndef ONESHOT_LANES_PART  // one of these two is opened alone
#include "cpu/simd/exp_polynomial.inc"
#include "cpu/simd/math.inc"
#endif
