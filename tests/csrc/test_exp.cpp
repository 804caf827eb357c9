// exp_negative, which the hmm and routing kernels are built on, at the level in use.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <vector>

#define ONESHOT_KERNEL_BODY "exp_probe.inc"
#include "cpu/foreach_isa.h"

namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();

void exp_into(const std::vector<float>& x, std::vector<float>& y) {
  ONESHOT_DISPATCH_ISA(exp_probe, x.data(), y.data(), int64_t(x.size()));
}

std::vector<float> exp_of(const std::vector<float>& x) {
  std::vector<float> y(x.size());
  exp_into(x, y);
  return y;
}

// Relative errors in units of 2^-24 over an even grid.
struct Errors {
  double largest = 0.0, mean = 0.0;
  Errors(double from, double to, int64_t count) {
    std::vector<float> x(size_t(count), 0.0f);
    for (int64_t i = 0; i < count; ++i) x[size_t(i)] = float(from + (to - from) * i / count);
    const std::vector<float> y = exp_of(x);
    for (int64_t i = 0; i < count; ++i) {
      const double exact = std::exp(double(x[size_t(i)]));
      const double error = (double(y[size_t(i)]) / exact - 1.0) * 0x1p24;
      largest = std::fmax(largest, std::fabs(error));
      mean += error / double(count);
    }
  }
};

TEST(Exp, IsRightToAboutAnUlpAndUnbiased) {
  const Errors near(-1.0, 0.0, 1 << 20), wide(-87.0, 0.0, 1 << 22);
  EXPECT_LT(near.largest, 2.2);
  EXPECT_LT(wide.largest, 2.2);
  EXPECT_LT(std::fabs(near.mean), 0.1);
  EXPECT_LT(std::fabs(wide.mean), 0.02);
}

TEST(Exp, MeetsTheEndsAndSpecialNumbers) {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const std::vector<float> y = exp_of({0.0f, -0.0f, -kInf, nan, -87.4f, -1e30f, -3.4e38f});
  EXPECT_EQ(y[0], 1.0f);
  EXPECT_EQ(y[1], 1.0f);
  EXPECT_EQ(y[2], 0.0f);
  EXPECT_TRUE(std::isnan(y[3]));
  for (size_t i = 4; i < y.size(); ++i) EXPECT_EQ(y[i], 0.0f) << i;
}

}  // namespace
