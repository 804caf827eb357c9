// Sixteen float lanes. See simd/scalar.h for what each name means.

#ifndef ONESHOT_LANES  // opened alone
#include "cpu/body.h"
#define ONESHOT_LANES
using namespace oneshot;  // NOLINT
#endif

struct Mask {
  __mmask16 bits;
};

struct F32 {
  using Real = float;
  static constexpr int kWidth = 16;
  __m512 v;
};

inline __mmask16 first_lanes(int64_t n) {
  return n >= 16 ? __mmask16(0xffff) : (n <= 0 ? __mmask16(0) : __mmask16((1u << n) - 1u));
}

inline F32 set1(float x) { return {_mm512_set1_ps(x)}; }
inline F32 load(const float* p) { return {_mm512_loadu_ps(p)}; }
inline F32 widen(const BFloat16*, __m256i words) {
  // Word i to the upper half of lane i, zero to the lower: one shuffle instead of two instructions.
  const __m512i spread = _mm512_set_epi16(15, 0, 14, 0, 13, 0, 12, 0, 11, 0, 10, 0, 9, 0, 8, 0, 7,
                                          0, 6, 0, 5, 0, 4, 0, 3, 0, 2, 0, 1, 0, 0, 0);
  return {_mm512_castsi512_ps(
      _mm512_maskz_permutexvar_epi16(0xaaaaaaaa, spread, _mm512_castsi256_si512(words)))};
}
inline F32 widen(const Float16*, __m256i words) { return {_mm512_cvtph_ps(words)}; }
template <typename T>
inline F32 load(const T* p) {
  return widen(p, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
inline F32 load_n(const float* p, int64_t n, F32 rest) {
  return {_mm512_mask_loadu_ps(rest.v, first_lanes(n), p)};
}
template <typename T>
inline F32 load_n(const T* p, int64_t n, F32 rest) {
  const __mmask16 lanes = first_lanes(n);
  const F32 x = widen(p, _mm256_maskz_loadu_epi16(lanes, p));
  return {_mm512_mask_blend_ps(lanes, rest.v, x.v)};
}
inline __m256i narrow(const BFloat16*, F32 a) {
  const __m512i bits = _mm512_castps_si512(a.v);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  const __m512i rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
  const __mmask16 nan = _mm512_cmp_ps_mask(a.v, a.v, _CMP_UNORD_Q);
  const __m512i safe = _mm512_mask_or_epi32(rounded, nan, bits, _mm512_set1_epi32(0x400000));
  return _mm512_cvtepi32_epi16(_mm512_srli_epi32(safe, 16));
}
inline __m256i narrow(const Float16*, F32 a) {
  return _mm512_cvtps_ph(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
inline void store(float* p, F32 a) { _mm512_storeu_ps(p, a.v); }
template <typename T>
inline void store(T* p, F32 a) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), narrow(p, a));
}
// Two vectors of bfloat16 at once: the upper halves of both, rounded to nearest even.
inline __m512i rounded_bits(F32 x) {
  const __m512i bits = _mm512_castps_si512(x.v);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  return _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
}
inline void store_two(BFloat16* p, F32 a, F32 b) {
  if (__builtin_expect(_mm512_cmp_ps_mask(a.v, b.v, _CMP_UNORD_Q) != 0, 0)) {
    store(p, a);
    store(p + 16, b);
    return;
  }
  const __m512i upper =
      _mm512_set_epi16(63, 61, 59, 57, 55, 53, 51, 49, 47, 45, 43, 41, 39, 37, 35, 33, 31, 29, 27,
                       25, 23, 21, 19, 17, 15, 13, 11, 9, 7, 5, 3, 1);
  _mm512_storeu_si512(p, _mm512_permutex2var_epi16(rounded_bits(a), upper, rounded_bits(b)));
}
inline void store_all(BFloat16* p, const F32 (&a)[4]) {
  store_two(p, a[0], a[1]);
  store_two(p + 32, a[2], a[3]);
}
inline void store_n(float* p, int64_t n, F32 a) { _mm512_mask_storeu_ps(p, first_lanes(n), a.v); }
template <typename T>
inline void store_n(T* p, int64_t n, F32 a) {
  _mm256_mask_storeu_epi16(p, first_lanes(n), narrow(p, a));
}

inline void store_index(uint32_t* p, F32 a) { _mm512_storeu_si512(p, _mm512_cvtps_epi32(a.v)); }
inline void store_index(uint16_t* p, F32 a) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p),
                      _mm512_cvtepi32_epi16(_mm512_cvtps_epi32(a.v)));
}
inline void store_index(uint8_t* p, F32 a) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(a.v)));
}

inline F32 operator+(F32 a, F32 b) { return {_mm512_add_ps(a.v, b.v)}; }
inline F32 operator-(F32 a, F32 b) { return {_mm512_sub_ps(a.v, b.v)}; }
inline F32 operator*(F32 a, F32 b) { return {_mm512_mul_ps(a.v, b.v)}; }
inline F32 operator/(F32 a, F32 b) { return {_mm512_div_ps(a.v, b.v)}; }
inline F32 fma(F32 a, F32 b, F32 c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
inline F32 max(F32 a, F32 b) { return {_mm512_max_ps(a.v, b.v)}; }
inline F32 min(F32 a, F32 b) { return {_mm512_min_ps(a.v, b.v)}; }
inline F32 abs(F32 a) { return {_mm512_abs_ps(a.v)}; }
inline F32 sqrt(F32 a) { return {_mm512_sqrt_ps(a.v)}; }

inline Mask operator<(F32 a, F32 b) { return {_mm512_cmp_ps_mask(a.v, b.v, _CMP_LT_OQ)}; }
inline Mask operator<=(F32 a, F32 b) { return {_mm512_cmp_ps_mask(a.v, b.v, _CMP_LE_OQ)}; }
inline Mask operator>(F32 a, F32 b) { return {_mm512_cmp_ps_mask(a.v, b.v, _CMP_GT_OQ)}; }
inline Mask operator>=(F32 a, F32 b) { return {_mm512_cmp_ps_mask(a.v, b.v, _CMP_GE_OQ)}; }
inline Mask operator==(F32 a, F32 b) { return {_mm512_cmp_ps_mask(a.v, b.v, _CMP_EQ_OQ)}; }
inline Mask is_nan(F32 a) { return {_mm512_cmp_ps_mask(a.v, a.v, _CMP_UNORD_Q)}; }
inline Mask operator&(Mask a, Mask b) { return {__mmask16(a.bits & b.bits)}; }
inline Mask operator|(Mask a, Mask b) { return {__mmask16(a.bits | b.bits)}; }
inline Mask operator!(Mask a) { return {__mmask16(~a.bits)}; }
inline bool any(Mask a) { return a.bits != 0; }
inline bool all(Mask a) { return a.bits == 0xffff; }
inline int count(Mask a) { return __builtin_popcount(unsigned(a.bits)); }
inline Mask load_mask(const bool* p) {
  const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return {_mm_test_epi8_mask(bytes, bytes)};
}
inline Mask load_mask_n(const bool* p, int64_t n) {
  const __m128i bytes = _mm_maskz_loadu_epi8(first_lanes(n), p);
  return {_mm_test_epi8_mask(bytes, bytes)};
}
inline F32 select(Mask m, F32 yes, F32 no) { return {_mm512_mask_blend_ps(m.bits, no.v, yes.v)}; }

inline float reduce_add(F32 a) { return _mm512_reduce_add_ps(a.v); }
inline float reduce_max(F32 a) { return _mm512_reduce_max_ps(a.v); }

inline F32 exp2_integral(F32 n) {
  const F32 y = {_mm512_scalef_ps(_mm512_set1_ps(1.0f), n.v)};
  // scalef is exact into the subnormals; the other levels flush them, so this one does too.
  return select(n < set1(-126.0f), set1(0.0f), y);
}
// a * 2^n for integral n, rounded once more only where the result leaves the normal range.
inline F32 scale_exponent(F32 a, F32 n) { return {_mm512_scalef_ps(a.v, n.v)}; }
inline F32 round_even(F32 a) {
  return {_mm512_roundscale_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
}
inline F32 split_exponent(F32 x, F32* n) {
  n->v = _mm512_getexp_ps(x.v);
  return {_mm512_getmant_ps(x.v, _MM_MANT_NORM_1_2, _MM_MANT_SIGN_src)};
}

inline void transpose(F32 (&rows)[16]) {
  __m512 a[16], b[16];
  for (int i = 0; i < 16; i += 2) {
    a[i] = _mm512_unpacklo_ps(rows[i].v, rows[i + 1].v);
    a[i + 1] = _mm512_unpackhi_ps(rows[i].v, rows[i + 1].v);
  }
  for (int i = 0; i < 16; i += 4) {
    for (int j = 0; j < 2; ++j) {
      b[i + 2 * j] = _mm512_shuffle_ps(a[i + j], a[i + j + 2], 0x44);
      b[i + 2 * j + 1] = _mm512_shuffle_ps(a[i + j], a[i + j + 2], 0xee);
    }
  }
  // b[4 k + c] holds columns c, c + 4, c + 8, c + 12 of rows 4 k ... 4 k + 3, one a 128-bit lane.
  for (int c = 0; c < 4; ++c) {
    const __m512 low02 = _mm512_shuffle_f32x4(b[c], b[c + 4], 0x88);
    const __m512 low13 = _mm512_shuffle_f32x4(b[c], b[c + 4], 0xdd);
    const __m512 high02 = _mm512_shuffle_f32x4(b[c + 8], b[c + 12], 0x88);
    const __m512 high13 = _mm512_shuffle_f32x4(b[c + 8], b[c + 12], 0xdd);
    rows[c].v = _mm512_shuffle_f32x4(low02, high02, 0x88);
    rows[c + 4].v = _mm512_shuffle_f32x4(low13, high13, 0x88);
    rows[c + 8].v = _mm512_shuffle_f32x4(low02, high02, 0xdd);
    rows[c + 12].v = _mm512_shuffle_f32x4(low13, high13, 0xdd);
  }
}

struct Sum64 {
  __m512d low, high;
  // Written out: GCC compiles an implicit constructor without the target of this region.
  Sum64() : low(_mm512_setzero_pd()), high(_mm512_setzero_pd()) {}
  void add(F32 a) {
    low = _mm512_add_pd(low, _mm512_cvtps_pd(_mm512_castps512_ps256(a.v)));
    high = _mm512_add_pd(high, _mm512_cvtps_pd(_mm512_extractf32x8_ps(a.v, 1)));
  }
  double total() const { return _mm512_reduce_add_pd(_mm512_add_pd(low, high)); }
};

inline constexpr float kExp2Lowest = -150.0f;
inline F32 exp2_fraction(F32 z) {
  return {_mm512_reduce_ps(z.v, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC)};
}
// A result that underflows costs some Intel cores over a hundred cycles, so what is 0 anyway (-inf,
// a lane behind the end of a row) is masked out. A NaN stays one.
inline F32 exp2_scale(F32 p, F32 z) {
  const __mmask16 some = _mm512_cmp_ps_mask(z.v, _mm512_set1_ps(kExp2Lowest), _CMP_NLE_UQ);
  return {_mm512_maskz_scalef_ps(some, p.v, z.v)};
}

// 2^(k / 32) for k = 0 ... 31, less k * 2^18 in the bits, as exp_negative adds that back with the
// exponent. Rounded to nearest but for three entries, rounded so that the errors are zero on
// average.
alignas(64) inline constexpr uint32_t kExpTable[32] = {
    0x3f800000, 0x3f7ecd87, 0x3f7daac3, 0x3f7c980e, 0x3f7b95c2, 0x3f7aa439, 0x3f79c3d3, 0x3f78f4f0,
    0x3f7837f0, 0x3f778d3a, 0x3f76f532, 0x3f767043, 0x3f75fed6, 0x3f75a15b, 0x3f75583f, 0x3f7523f6,
    0x3f7504f3, 0x3f74fbaf, 0x3f7508a4, 0x3f752c4d, 0x3f75672a, 0x3f75b9be, 0x3f76248c, 0x3f76a81e,
    0x3f7744fd, 0x3f77fbb8, 0x3f78ccdf, 0x3f79b907, 0x3f7ac0c7, 0x3f7be4ba, 0x3f7d257d, 0x3f7e83b3};

// x = e^x for x <= 0, N vectors in lockstep: x = n ln2 / 32 + r, with 2^(n / 32) from a table in
// two registers. Relative error about 1 ulp and, unlike that of a truncated series, zero on average
// (products of many factors keep their digits). 0 below e^-87.3; NaN for NaN. Takes 0.82 of the
// cycles of a polynomial and vscalefps, and no hundred more for a subnormal.
template <int N>
inline __attribute__((always_inline)) void exp_negative(F32 (&x)[N]) {
  const __m512i low = _mm512_load_si512(kExpTable), high = _mm512_load_si512(kExpTable + 16);
  const F32 round = set1(12582912.0f);  // 1.5 * 2^23: what is added to it loses its fraction
  F32 y[N], r[N], p[N];
  for (int i = 0; i < N; ++i) y[i] = fma(x[i], set1(46.1662413f), round);
  for (int i = 0; i < N; ++i) {
    const F32 n = y[i] - round;
    r[i] =
        fma(n, set1(5.95204e-11f), fma(n, set1(-0.0216608494f), x[i]));  // ln 2 / 32 in two parts
  }
  // Minimax on |r| <= ln 2 / 64 with the first two coefficients exact: 1e-10.
  for (int i = 0; i < N; ++i) p[i] = fma(set1(1.66666667e-1f), r[i], set1(5.00004048e-1f));
  for (int i = 0; i < N; ++i) p[i] = fma(p[i], r[i], set1(1.0f)) * r[i];
  for (int i = 0; i < N; ++i) {
    const __m512i n = _mm512_castps_si512(y[i].v);
    const __m512 power = _mm512_castsi512_ps(
        _mm512_add_epi32(_mm512_permutex2var_epi32(low, n, high), _mm512_slli_epi32(n, 18)));
    const __mmask16 some = _mm512_cmp_ps_mask(x[i].v, _mm512_set1_ps(-87.3f), _CMP_NLE_UQ);
    x[i].v = _mm512_maskz_fmadd_ps(some, power, p[i].v, power);
  }
}

inline __mmask16 part_mask(int64_t n) { return __mmask16((1u << n) - 1u); }
// p[0], p[stride] ... in the first n lanes, 0 in the others.
inline F32 gather(const float* p, int64_t stride, int64_t n) {
  const __m512i lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  const __m512i places = _mm512_mullo_epi32(lanes, _mm512_set1_epi32(int(stride)));
  return {_mm512_mask_i32gather_ps(_mm512_setzero_ps(), first_lanes(n), places, p, 4)};
}
inline F32 load_part(const float* p, int64_t n) { return {_mm512_maskz_loadu_ps(part_mask(n), p)}; }
inline F32 load_end(const float* end, int64_t n) {
  const __mmask16 last = __mmask16(0xffffu << (16 - n));
  return {_mm512_maskz_compress_ps(last, _mm512_loadu_ps(end - 16))};
}
inline void store_part(float* p, int64_t n, F32 a) { _mm512_mask_storeu_ps(p, part_mask(n), a.v); }
inline float lane0(F32 a) { return _mm512_cvtss_f32(a.v); }
inline F32 splat_sum(F32 a) {
  __m512 x = _mm512_add_ps(a.v, _mm512_shuffle_f32x4(a.v, a.v, 0x4e));
  x = _mm512_add_ps(x, _mm512_shuffle_f32x4(x, x, 0xb1));
  x = _mm512_add_ps(x, _mm512_permute_ps(x, 0x4e));
  return {_mm512_add_ps(x, _mm512_permute_ps(x, 0xb1))};
}
inline F32 splat_max(F32 a) {
  __m512 x = _mm512_max_ps(a.v, _mm512_shuffle_f32x4(a.v, a.v, 0x4e));
  x = _mm512_max_ps(x, _mm512_shuffle_f32x4(x, x, 0xb1));
  x = _mm512_max_ps(x, _mm512_permute_ps(x, 0x4e));
  return {_mm512_max_ps(x, _mm512_permute_ps(x, 0xb1))};
}
inline F32 inverse_power(F32 a) {
  const __m512i exponent =
      _mm512_and_si512(_mm512_castps_si512(a.v), _mm512_set1_epi32(0x7f800000));
  return {_mm512_castsi512_ps(_mm512_sub_epi32(_mm512_set1_epi32(0x7f000000), exponent))};
}
template <int kRows>
inline F32 merge_sums(F32 a, F32 b) {
  if constexpr (kRows == 1) {
    return {_mm512_add_ps(_mm512_unpacklo_ps(a.v, b.v), _mm512_unpackhi_ps(a.v, b.v))};
  } else if constexpr (kRows == 2) {
    return {_mm512_add_ps(_mm512_shuffle_ps(a.v, b.v, 0x44), _mm512_shuffle_ps(a.v, b.v, 0xee))};
  } else {
    return {
        _mm512_add_ps(_mm512_shuffle_f32x4(a.v, b.v, 0x88), _mm512_shuffle_f32x4(a.v, b.v, 0xdd))};
  }
}

inline F32 permute(F32 a, const int32_t* lanes) {
  return {_mm512_permutexvar_ps(_mm512_load_si512(lanes), a.v)};
}

#include "cpu/simd/math.inc"
