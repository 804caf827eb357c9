// Eight float lanes. See simd/scalar.h for what each name means.

#ifndef ONESHOT_LANES  // opened alone
#include "cpu/body.h"
#define ONESHOT_LANES
using namespace oneshot;  // NOLINT
#endif

struct Mask {
  __m256 bits;
};

struct F32 {
  using Real = float;
  static constexpr int kWidth = 8;
  __m256 v;
};

inline __m256i lane_index() { return _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7); }
inline __m256i first_lanes(int64_t n) {
  const int count = n < 0 ? 0 : (n > 8 ? 8 : int(n));
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(count), lane_index());
}

inline F32 set1(float x) { return {_mm256_set1_ps(x)}; }
inline F32 load(const float* p) { return {_mm256_loadu_ps(p)}; }
inline F32 load(const BFloat16* p) {
  const __m128i words = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return {_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(words), 16))};
}
inline F32 load(const Float16* p) {
  return {_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))};
}
inline F32 load_n(const float* p, int64_t n, F32 rest) {
  const __m256i lanes = first_lanes(n);
  return {_mm256_blendv_ps(rest.v, _mm256_maskload_ps(p, lanes), _mm256_castsi256_ps(lanes))};
}
template <typename T>
inline F32 load_n(const T* p, int64_t n, F32 rest) {
  T words[8] = {};
  std::memcpy(words, p, size_t(n < 0 ? 0 : (n > 8 ? 8 : n)) * sizeof(T));
  const __m256 lanes = _mm256_castsi256_ps(first_lanes(n));
  return {_mm256_blendv_ps(rest.v, load(words).v, lanes)};
}
inline void store(float* p, F32 a) { _mm256_storeu_ps(p, a.v); }
inline void store(BFloat16* p, F32 a) {
  const __m256i bits = _mm256_castps_si256(a.v);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  const __m256i rounded = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
  const __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
  const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(a.v, a.v, _CMP_UNORD_Q));
  const __m256i words = _mm256_srli_epi32(_mm256_blendv_epi8(rounded, quiet, nan), 16);
  const __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(words, words), 0x08);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_castsi256_si128(packed));
}
inline void store(Float16* p, F32 a) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p),
                   _mm256_cvtps_ph(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
// Two vectors of bfloat16 at once, rounded to nearest even.
inline __m256i rounded_upper_half(F32 x) {
  const __m256i bits = _mm256_castps_si256(x.v);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  const __m256i rounded = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
  return _mm256_srli_epi32(rounded, 16);
}
inline void store_two(BFloat16* p, F32 a, F32 b) {
  if (__builtin_expect(_mm256_movemask_ps(_mm256_cmp_ps(a.v, b.v, _CMP_UNORD_Q)) != 0, 0)) {
    store(p, a);
    store(p + 8, b);
    return;
  }
  const __m256i words = _mm256_packus_epi32(rounded_upper_half(a), rounded_upper_half(b));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm256_permute4x64_epi64(words, 0xd8));
}
inline void store_all(BFloat16* p, const F32 (&a)[4]) {
  store_two(p, a[0], a[1]);
  store_two(p + 16, a[2], a[3]);
}
inline void store_n(float* p, int64_t n, F32 a) { _mm256_maskstore_ps(p, first_lanes(n), a.v); }
template <typename T>
inline void store_n(T* p, int64_t n, F32 a) {
  T words[8];
  store(words, a);
  std::memcpy(p, words, size_t(n < 0 ? 0 : (n > 8 ? 8 : n)) * sizeof(T));
}

inline void store_index(uint32_t* p, F32 a) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm256_cvtps_epi32(a.v));
}
inline __m128i words_of(F32 a) {
  const __m256i x = _mm256_cvtps_epi32(a.v);
  return _mm_packus_epi32(_mm256_castsi256_si128(x), _mm256_extracti128_si256(x, 1));
}
inline void store_index(uint16_t* p, F32 a) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), words_of(a));
}
inline void store_index(uint8_t* p, F32 a) {
  const __m128i words = words_of(a);
  _mm_storel_epi64(reinterpret_cast<__m128i*>(p), _mm_packus_epi16(words, words));
}

inline F32 operator+(F32 a, F32 b) { return {_mm256_add_ps(a.v, b.v)}; }
inline F32 operator-(F32 a, F32 b) { return {_mm256_sub_ps(a.v, b.v)}; }
inline F32 operator*(F32 a, F32 b) { return {_mm256_mul_ps(a.v, b.v)}; }
inline F32 operator/(F32 a, F32 b) { return {_mm256_div_ps(a.v, b.v)}; }
inline F32 fma(F32 a, F32 b, F32 c) { return {_mm256_fmadd_ps(a.v, b.v, c.v)}; }
inline F32 max(F32 a, F32 b) { return {_mm256_max_ps(a.v, b.v)}; }
inline F32 min(F32 a, F32 b) { return {_mm256_min_ps(a.v, b.v)}; }
inline F32 abs(F32 a) { return {_mm256_andnot_ps(_mm256_set1_ps(-0.0f), a.v)}; }
inline F32 sqrt(F32 a) { return {_mm256_sqrt_ps(a.v)}; }

inline Mask operator<(F32 a, F32 b) { return {_mm256_cmp_ps(a.v, b.v, _CMP_LT_OQ)}; }
inline Mask operator<=(F32 a, F32 b) { return {_mm256_cmp_ps(a.v, b.v, _CMP_LE_OQ)}; }
inline Mask operator>(F32 a, F32 b) { return {_mm256_cmp_ps(a.v, b.v, _CMP_GT_OQ)}; }
inline Mask operator>=(F32 a, F32 b) { return {_mm256_cmp_ps(a.v, b.v, _CMP_GE_OQ)}; }
inline Mask operator==(F32 a, F32 b) { return {_mm256_cmp_ps(a.v, b.v, _CMP_EQ_OQ)}; }
inline Mask is_nan(F32 a) { return {_mm256_cmp_ps(a.v, a.v, _CMP_UNORD_Q)}; }
inline Mask operator&(Mask a, Mask b) { return {_mm256_and_ps(a.bits, b.bits)}; }
inline Mask operator|(Mask a, Mask b) { return {_mm256_or_ps(a.bits, b.bits)}; }
inline Mask operator!(Mask a) {
  return {_mm256_xor_ps(a.bits, _mm256_castsi256_ps(_mm256_set1_epi32(-1)))};
}
inline bool any(Mask a) { return _mm256_movemask_ps(a.bits) != 0; }
inline bool all(Mask a) { return _mm256_movemask_ps(a.bits) == 0xff; }
inline int count(Mask a) { return __builtin_popcount(unsigned(_mm256_movemask_ps(a.bits))); }
inline Mask load_mask(const bool* p) {
  const __m256i bytes = _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
  return {_mm256_castsi256_ps(_mm256_cmpgt_epi32(bytes, _mm256_setzero_si256()))};
}
inline Mask load_mask_n(const bool* p, int64_t n) {
  bool lanes[8] = {};
  std::memcpy(lanes, p, size_t(n < 0 ? 0 : (n > 8 ? 8 : n)));
  return load_mask(lanes);
}
inline F32 select(Mask m, F32 yes, F32 no) { return {_mm256_blendv_ps(no.v, yes.v, m.bits)}; }

inline float reduce_add(F32 a) {
  __m128 x = _mm_add_ps(_mm256_castps256_ps128(a.v), _mm256_extractf128_ps(a.v, 1));
  x = _mm_add_ps(x, _mm_movehl_ps(x, x));
  return _mm_cvtss_f32(_mm_add_ss(x, _mm_movehdup_ps(x)));
}
inline float reduce_max(F32 a) {
  __m128 x = _mm_max_ps(_mm256_castps256_ps128(a.v), _mm256_extractf128_ps(a.v, 1));
  x = _mm_max_ps(x, _mm_movehl_ps(x, x));
  return _mm_cvtss_f32(_mm_max_ss(x, _mm_movehdup_ps(x)));
}

inline F32 exp2_integral(F32 n) {
  const __m256i exponent = _mm256_cvtps_epi32(n.v);
  const __m256i bits = _mm256_slli_epi32(_mm256_add_epi32(exponent, _mm256_set1_epi32(127)), 23);
  const F32 y = {_mm256_castsi256_ps(bits)};
  const F32 low = select(n < set1(-126.0f), set1(0.0f), y);
  const F32 high = select(n > set1(127.0f), set1(std::numeric_limits<float>::infinity()), low);
  return select(is_nan(n), n, high);
}
inline F32 round_even(F32 a);
// a * 2^n for integral n; two factors, because 2^n alone may overflow where the product does not.
inline F32 scale_exponent(F32 a, F32 n) {
  const F32 half = round_even(n * set1(0.5f));
  return a * exp2_integral(half) * exp2_integral(n - half);
}
inline F32 split_exponent(F32 x, F32* n) {
  const __m256i bits = _mm256_castps_si256(x.v);
  n->v = _mm256_cvtepi32_ps(_mm256_sub_epi32(_mm256_srli_epi32(bits, 23), _mm256_set1_epi32(127)));
  const __m256i fraction = _mm256_and_si256(bits, _mm256_set1_epi32(0x7fffff));
  return {_mm256_castsi256_ps(_mm256_or_si256(fraction, _mm256_set1_epi32(0x3f800000)))};
}
inline F32 round_even(F32 a) {
  return {_mm256_round_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
}

inline void transpose(F32 (&rows)[8]) {
  __m256 a[8], b[8];
  for (int i = 0; i < 8; i += 2) {
    a[i] = _mm256_unpacklo_ps(rows[i].v, rows[i + 1].v);
    a[i + 1] = _mm256_unpackhi_ps(rows[i].v, rows[i + 1].v);
  }
  for (int i = 0; i < 8; i += 4) {
    for (int j = 0; j < 2; ++j) {
      b[i + 2 * j] = _mm256_shuffle_ps(a[i + j], a[i + j + 2], 0x44);
      b[i + 2 * j + 1] = _mm256_shuffle_ps(a[i + j], a[i + j + 2], 0xee);
    }
  }
  for (int i = 0; i < 4; ++i) {
    rows[i].v = _mm256_permute2f128_ps(b[i], b[i + 4], 0x20);
    rows[i + 4].v = _mm256_permute2f128_ps(b[i], b[i + 4], 0x31);
  }
}

struct Sum64 {
  __m256d low, high;
  // Written out: GCC compiles an implicit constructor without the target of this region.
  Sum64() : low(_mm256_setzero_pd()), high(_mm256_setzero_pd()) {}
  void add(F32 a) {
    low = _mm256_add_pd(low, _mm256_cvtps_pd(_mm256_castps256_ps128(a.v)));
    high = _mm256_add_pd(high, _mm256_cvtps_pd(_mm256_extractf128_ps(a.v, 1)));
  }
  double total() const {
    const __m256d s = _mm256_add_pd(low, high);
    const __m128d x = _mm_add_pd(_mm256_castpd256_pd128(s), _mm256_extractf128_pd(s, 1));
    return _mm_cvtsd_f64(_mm_add_sd(x, _mm_unpackhi_pd(x, x)));
  }
};

inline constexpr float kExp2Lowest = -127.0f;
inline F32 exp2_fraction(F32 z) { return {_mm256_sub_ps(z.v, _mm256_floor_ps(z.v))}; }
inline F32 exp2_scale(F32 p, F32 z) {
  const __m256i exponent = _mm256_cvtps_epi32(_mm256_floor_ps(z.v));
  const __m256i bits = _mm256_slli_epi32(_mm256_add_epi32(exponent, _mm256_set1_epi32(127)), 23);
  return {_mm256_mul_ps(p.v, _mm256_castsi256_ps(bits))};
}

inline constexpr float kExpLowest = -87.3f;
inline F32 exp_exponent(F32 x) { return fma(x, set1(1.44269504f), set1(12582912.0f)); }
inline F32 exp_rounded(F32 n) { return n - set1(12582912.0f); }
inline F32 exp_scaled(F32 p, F32 n, F32 x) {
  const __m256i shift = _mm256_slli_epi32(_mm256_castps_si256(n.v), 23);
  const F32 y = {_mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(p.v), shift))};
  return select(x >= set1(kExpLowest), y, max(set1(0.0f), x));  // a NaN stays one
}

inline __m256i part_mask(int64_t n) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(int(n)), lane_index());
}
inline F32 gather(const float* p, int64_t stride, int64_t n) {
  const __m256i lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  const __m256i places = _mm256_mullo_epi32(lanes, _mm256_set1_epi32(int(stride)));
  return {_mm256_mask_i32gather_ps(_mm256_setzero_ps(), p, places,
                                   _mm256_castsi256_ps(first_lanes(n)), 4)};
}
inline F32 load_part(const float* p, int64_t n) { return {_mm256_maskload_ps(p, part_mask(n))}; }
inline F32 load_end(const float* end, int64_t n) {
  const __m256i lanes =
      _mm256_add_epi32(_mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7), _mm256_set1_epi32(int(8 - n)));
  const __m256 x = _mm256_permutevar8x32_ps(_mm256_loadu_ps(end - 8), lanes);
  return {_mm256_and_ps(x, _mm256_castsi256_ps(part_mask(n)))};
}
// In pieces: AMD's masked stores take twenty cycles, and loads behind them wait.
inline void store_part(float* p, int64_t n, F32 a) {
  if (n & 8) return store(p, a);
  __m128 x = _mm256_castps256_ps128(a.v);
  if (n & 4) {
    _mm_storeu_ps(p, x);
    x = _mm256_extractf128_ps(a.v, 1);
    p += 4;
  }
  if (n & 2) {
    _mm_storel_pi(reinterpret_cast<__m64*>(p), x);
    x = _mm_movehl_ps(x, x);
    p += 2;
  }
  if (n & 1) _mm_store_ss(p, x);
}
inline float lane0(F32 a) { return _mm256_cvtss_f32(a.v); }
inline F32 splat_sum(F32 a) {
  __m256 x = _mm256_add_ps(a.v, _mm256_permute2f128_ps(a.v, a.v, 1));
  x = _mm256_add_ps(x, _mm256_permute_ps(x, 0x4e));
  return {_mm256_add_ps(x, _mm256_permute_ps(x, 0xb1))};
}
inline F32 splat_max(F32 a) {
  __m256 x = _mm256_max_ps(a.v, _mm256_permute2f128_ps(a.v, a.v, 1));
  x = _mm256_max_ps(x, _mm256_permute_ps(x, 0x4e));
  return {_mm256_max_ps(x, _mm256_permute_ps(x, 0xb1))};
}
inline F32 inverse_power(F32 a) {
  const __m256i exponent =
      _mm256_and_si256(_mm256_castps_si256(a.v), _mm256_set1_epi32(0x7f800000));
  return {_mm256_castsi256_ps(_mm256_sub_epi32(_mm256_set1_epi32(0x7f000000), exponent))};
}
template <int kRows>
inline F32 merge_sums(F32 a, F32 b) {
  if constexpr (kRows == 1) {
    return {_mm256_add_ps(_mm256_unpacklo_ps(a.v, b.v), _mm256_unpackhi_ps(a.v, b.v))};
  } else if constexpr (kRows == 2) {
    return {_mm256_add_ps(_mm256_shuffle_ps(a.v, b.v, 0x44), _mm256_shuffle_ps(a.v, b.v, 0xee))};
  } else {
    return {_mm256_add_ps(_mm256_permute2f128_ps(a.v, b.v, 0x20),
                          _mm256_permute2f128_ps(a.v, b.v, 0x31))};
  }
}

inline F32 permute(F32 a, const int32_t* lanes) {
  return {
      _mm256_permutevar8x32_ps(a.v, _mm256_load_si256(reinterpret_cast<const __m256i*>(lanes)))};
}

#include "cpu/simd/exp_polynomial.inc"
#include "cpu/simd/math.inc"
