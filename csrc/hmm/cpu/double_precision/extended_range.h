// The numbers of the sweeps in double: non-negative weights, as double or with an exponent of their
// own.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

namespace oneshot::cpu {

inline constexpr double kLn2 = 0.693147180559945309417;

// 2^n for -1022 <= n <= 1023.
inline double pow2_of(int64_t n) {
  const uint64_t bits = uint64_t(n + 1023) << 52;
  double x;
  std::memcpy(&x, &bits, sizeof(x));
  return x;
}

// mantissa * 2^exponent, 1 <= mantissa < 2, or 0. The exponent is a whole number that no sum of
// log-potentials can overflow.
struct ExtendedRange {
  double mantissa = 0.0, exponent = 0.0;
};

inline ExtendedRange operator*(ExtendedRange a, ExtendedRange b) {
  const double m = a.mantissa * b.mantissa;
  if (m == 0.0) return {};
  return m >= 2.0 ? ExtendedRange{0.5 * m, a.exponent + b.exponent + 1.0}
                  : ExtendedRange{m, a.exponent + b.exponent};
}

inline ExtendedRange operator+(ExtendedRange a, ExtendedRange b) {
  if (b.mantissa == 0.0) return a;
  if (a.mantissa == 0.0) return b;
  const bool swap = a.exponent < b.exponent;
  const ExtendedRange high = swap ? b : a, low = swap ? a : b;
  const double drop = low.exponent - high.exponent;
  if (drop < -60.0) return high;
  const double m = high.mantissa + low.mantissa * pow2_of(int64_t(drop));
  return m >= 2.0 ? ExtendedRange{0.5 * m, high.exponent + 1.0} : ExtendedRange{m, high.exponent};
}

// What the sweeps ask of a number N besides + and *.
template <typename N>
struct Number;

template <>
struct Number<double> {
  static constexpr double kLowestExponent = -1022.0;  // below it digits are lost
  static double from_log(double x) { return std::exp(x); }
  static bool is_zero(double x) { return x == 0.0; }
  static double log(double x) { return std::log(x); }
  // 0 for 0, so that an impossible step scales by 1.
  static double exponent(double x) {
    if (!(x > 0.0 && std::isfinite(x))) return 0.0;
    uint64_t bits;
    std::memcpy(&bits, &x, sizeof(bits));
    const auto biased = int64_t(bits >> 52);
    return biased == 0 ? double(std::ilogb(x)) : double(biased - 1023);
  }
  static double scaled(double x, double n) {
    return std::fabs(n) <= 1022.0 ? x * pow2_of(int64_t(n)) : std::ldexp(x, int(n));
  }
  static double ratio(double a, double b) { return a / b; }
};

template <>
struct Number<ExtendedRange> {
  static constexpr double kLowestExponent = -std::numeric_limits<double>::infinity();
  static ExtendedRange from_log(double x) {
    if (x == -std::numeric_limits<double>::infinity()) return {};
    const double n = std::floor(x / kLn2);
    // In two parts: n * ln2 has more digits than a double.
    const double r = std::fma(-n, 2.319046813846299e-17, std::fma(-n, kLn2, x));
    const double m = std::exp(r);  // about [1, 2]
    if (m >= 2.0) return {0.5 * m, n + 1.0};
    return m < 1.0 ? ExtendedRange{2.0 * m, n - 1.0} : ExtendedRange{m, n};
  }
  static bool is_zero(ExtendedRange x) { return x.mantissa == 0.0; }
  static double log(ExtendedRange x) { return std::log(x.mantissa) + x.exponent * kLn2; }
  static double exponent(ExtendedRange x) { return x.exponent; }
  static ExtendedRange scaled(ExtendedRange x, double n) {
    return is_zero(x) ? x : ExtendedRange{x.mantissa, x.exponent + n};
  }
  static double ratio(ExtendedRange a, ExtendedRange b) {
    if (is_zero(a)) return 0.0;
    const double n = a.exponent - b.exponent;
    return std::ldexp(a.mantissa / b.mantissa, int(n < -1100.0  ? -1100.0
                                                   : n > 1100.0 ? 1100.0
                                                                : n));
  }
};

}  // namespace oneshot::cpu
