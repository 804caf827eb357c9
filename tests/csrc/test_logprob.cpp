#include "logprob/cpu/logprob.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <memory>
#include <vector>

using namespace oneshot;
using namespace oneshot::cpu;

namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

// A repeatable pseudo-random number in [-1, 1).
float noise(int64_t i) {
  uint64_t x = uint64_t(i) * 0x9e3779b97f4a7c15u + 0x1234567u;
  x ^= x >> 29, x *= 0xbf58476d1ce4e5b9u, x ^= x >> 32;
  return float(x & 0xffffff) / 8388608.0f - 1.0f;
}

BFloat16 to_bfloat16(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof(bits));
  return {uint16_t(bits >> 16)};
}

float from_bfloat16(BFloat16 x) {
  const uint32_t bits = uint32_t{x.bits} << 16;
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

// One row in long double: log p of a target, entropy, and the gradient of
// g * log p + h * entropy.
struct Exact {
  long double logprob, entropy;
  std::vector<long double> gradient;
};

Exact exact_row(const std::vector<long double>& logits, int64_t target, double temperature,
                long double g, long double h) {
  long double high = -kInf, total = 0, mean = 0;
  for (const auto x : logits) high = std::max(high, x);
  std::vector<long double> p(logits.size());
  for (size_t i = 0; i < p.size(); ++i) {
    p[i] = std::exp((logits[i] - high) / temperature);
    total += p[i];
  }
  for (size_t i = 0; i < p.size(); ++i) {
    p[i] /= total;
    if (p[i] > 0) mean += p[i] * (logits[i] - high) / temperature;
  }
  Exact row{(logits[target] - high) / temperature - std::log(total), std::log(total) - mean, {}};
  for (size_t i = 0; i < p.size(); ++i) {
    const long double y = (logits[i] - high) / temperature;
    const long double spread = p[i] > 0 ? p[i] * (mean - y) : 0;
    row.gradient.push_back((g * ((int64_t(i) == target ? 1.0L : 0.0L) - p[i]) + h * spread) /
                           temperature);
  }
  return row;
}

// Logits of exactly the size they have, so that AddressSanitizer sees a read past their end.
template <typename T>
struct Problem {
  int64_t rows, vocab;
  std::unique_ptr<T[]> logits, gradient;
  std::vector<int64_t> targets;
  std::vector<float> logprobs, entropy, stats, up_logprobs, up_entropy;
  LogprobInput input{};

  Problem(DType dtype, int64_t rows, int64_t vocab, double temperature)
      : rows(rows),
        vocab(vocab),
        logits(new T[size_t(rows * vocab)]),
        gradient(new T[size_t(rows * vocab)]),
        targets(rows),
        logprobs(rows, kNan),
        entropy(rows, kNan),
        stats(rows * kLogprobStats, kNan),
        up_logprobs(rows),
        up_entropy(rows) {
    for (int64_t r = 0; r < rows; ++r) {
      targets[r] = (r * 7919) % vocab;
      up_logprobs[r] = noise(r + 101);
      up_entropy[r] = noise(r + 977);
    }
    input.dtype = dtype;
    input.logits = logits.get();
    input.rows.push(rows, vocab);
    input.vocab = vocab;
    input.targets = targets.data();
    input.targets_per_row = 1;
    input.temperature = temperature;
  }
  int64_t forward() {
    return logprob_forward({input, logprobs.data(), entropy.data(), stats.data()}, 0, rows);
  }
  int64_t backward(T* out) {
    return logprob_backward({input, up_logprobs.data(), up_entropy.data(), logprobs.data(),
                             stats.data(), out, input.rows},
                            0, rows);
  }
};

}  // namespace

TEST(Logprob, MatchesLongDoubleAtEveryTailLength) {
  for (int64_t vocab : {1,  2,  3,   7,    8,    9,    15,   16,   17,   31,   63,
                        64, 65, 127, 1000, 2047, 2048, 2049, 8191, 8193, 20011}) {
    Problem<float> problem(DType::kFloat32, 3, vocab, 0.7);
    for (int64_t i = 0; i < 3 * vocab; ++i) problem.logits[i] = 9.0f * noise(i);
    ASSERT_EQ(problem.forward(), -1);
    ASSERT_EQ(problem.backward(problem.gradient.get()), -1);
    for (int64_t r = 0; r < 3; ++r) {
      const float* row = problem.logits.get() + r * vocab;
      const Exact exact = exact_row({row, row + vocab}, problem.targets[r], 0.7,
                                    problem.up_logprobs[r], problem.up_entropy[r]);
      EXPECT_NEAR(problem.logprobs[r], double(exact.logprob), 4e-6) << vocab;
      EXPECT_NEAR(problem.entropy[r], double(exact.entropy), 4e-6) << vocab;
      for (int64_t i = 0; i < vocab; ++i) {
        EXPECT_NEAR(problem.gradient[r * vocab + i], double(exact.gradient[i]), 2e-6)
            << vocab << " " << i;
      }
    }
    // Over the logits: the same bits.
    ASSERT_EQ(problem.backward(problem.logits.get()), -1);
    EXPECT_EQ(std::memcmp(problem.logits.get(), problem.gradient.get(),
                          size_t(3 * vocab) * sizeof(float)),
              0);
  }
}

TEST(Logprob, BFloat16GradientIsTheRoundedExactOne) {
  const int64_t vocab = 777;
  Problem<BFloat16> problem(DType::kBFloat16, 2, vocab, 1.0);
  for (int64_t i = 0; i < 2 * vocab; ++i) problem.logits[i] = to_bfloat16(5.0f * noise(i));
  ASSERT_EQ(problem.forward(), -1);
  ASSERT_EQ(problem.backward(problem.gradient.get()), -1);
  for (int64_t r = 0; r < 2; ++r) {
    std::vector<long double> row;
    for (int64_t i = 0; i < vocab; ++i) row.push_back(from_bfloat16(problem.logits[r * vocab + i]));
    const Exact exact =
        exact_row(row, problem.targets[r], 1.0, problem.up_logprobs[r], problem.up_entropy[r]);
    for (int64_t i = 0; i < vocab; ++i) {
      const double value = double(exact.gradient[i]);
      EXPECT_NEAR(from_bfloat16(problem.gradient[r * vocab + i]), value,
                  std::fabs(value) / 250 + 1e-9);
    }
  }
}

TEST(Logprob, GarbageInMaskedRowsAndExcludedTokensIsNotRead) {
  const int64_t vocab = 203;
  Problem<float> problem(DType::kFloat32, 4, vocab, 1.0);
  std::vector<char> mask{1, 0, 1, 0}, keep(vocab);
  std::vector<long double> kept;
  for (int64_t i = 0; i < vocab; ++i) keep[i] = i % 3 != 1;
  for (int64_t i = 0; i < 4 * vocab; ++i) {
    problem.logits[i] = mask[i / vocab] && keep[i % vocab] ? noise(i) : kNan;
  }
  for (int64_t r = 0; r < 4; ++r) problem.targets[r] = mask[r] ? 3 * r : -100;
  problem.input.mask = reinterpret_cast<const bool*>(mask.data());
  problem.input.keep_mask = reinterpret_cast<const bool*>(keep.data());
  problem.input.keep_rows.push(4, 0);
  ASSERT_EQ(problem.forward(), -1);
  ASSERT_EQ(problem.backward(problem.gradient.get()), -1);
  for (int64_t r = 0; r < 4; ++r) {
    std::vector<long double> row;
    for (int64_t i = 0; i < vocab; ++i) {
      row.push_back(keep[i] ? (long double)problem.logits[r * vocab + i] : -kInf);
    }
    const Exact exact = exact_row(row, mask[r] ? problem.targets[r] : 0, 1.0,
                                  problem.up_logprobs[r], problem.up_entropy[r]);
    EXPECT_NEAR(problem.logprobs[r], mask[r] ? double(exact.logprob) : 0.0, 2e-6);
    EXPECT_NEAR(problem.entropy[r], mask[r] ? double(exact.entropy) : 0.0, 2e-6);
    for (int64_t i = 0; i < vocab; ++i) {
      const double expected = mask[r] && keep[i] ? double(exact.gradient[i]) : 0.0;
      EXPECT_NEAR(problem.gradient[r * vocab + i], expected, 1e-6) << r << " " << i;
    }
  }
}

TEST(Logprob, NamesTheFirstRowWithABadTarget) {
  Problem<float> problem(DType::kFloat32, 5, 40, 1.0);
  for (int64_t i = 0; i < 5 * 40; ++i) problem.logits[i] = noise(i);
  problem.targets[2] = 40;
  problem.targets[4] = -1;
  EXPECT_EQ(problem.forward(), 2);
  EXPECT_EQ(problem.backward(problem.gradient.get()), 2);
}

TEST(Logprob, NanAndInfinityStayInTheirRow) {
  const int64_t vocab = 12345;
  for (float bad : {kNan, -kNan, kInf}) {
    for (int64_t place : {int64_t{0}, int64_t{2048}, int64_t{9000}, vocab - 1}) {
      Problem<float> problem(DType::kFloat32, 3, vocab, 1.0);
      for (int64_t i = 0; i < 3 * vocab; ++i) problem.logits[i] = i % vocab < 9000 ? -kInf : 0.0f;
      problem.logits[vocab + place] = bad;
      ASSERT_EQ(problem.forward(), -1);
      EXPECT_TRUE(std::isnan(problem.entropy[1])) << bad << " " << place;
      EXPECT_NEAR(problem.entropy[0], std::log(3345.0), 2e-6);
      EXPECT_EQ(problem.entropy[0], problem.entropy[2]);
    }
  }
}

TEST(Rows, MergesWhatIsAdjacentAndWalksTheRest) {
  Rows rows;  // [2, 3, 4] rows inside [2, 5, 4] rows of 10
  EXPECT_TRUE(rows.push(2, 200) && rows.push(3, 40) && rows.push(4, 10));
  EXPECT_EQ(rows.dims, 2);
  EXPECT_EQ(rows.offset(0), 0);
  EXPECT_EQ(rows.offset(11), 110);
  EXPECT_EQ(rows.offset(12), 200);
  EXPECT_EQ(rows.offset(23), 310);
  Rows same;  // one row for all
  EXPECT_TRUE(same.push(7, 0));
  EXPECT_EQ(same.offset(6), 0);
  EXPECT_EQ(Rows().offset(0), 0);
}
