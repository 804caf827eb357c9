#include "advantage/cpu/advantage.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <memory>
#include <vector>

#include "common/parallel.h"

using namespace oneshot;
using namespace oneshot::cpu;

namespace {

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

// A repeatable number in (-1, 1).
float noise(int64_t i) { return float(std::sin(double(i) * 12.9898 + 1.0)); }

// std::vector<bool> has no address; kernels read one byte a place.
struct MaskBytes {
  explicit MaskBytes(int64_t count) : bytes(new bool[size_t(count)]) {}
  bool* get() { return bytes.get(); }
  std::unique_ptr<bool[]> bytes;
};

GroupRule rule(const char* baseline, const char* scale) {
  return group_rule(baseline, scale, 1, 1e-6, "raw", "propagate");
}

std::vector<float> advantages(std::vector<float> rewards, const Groups& groups,
                              const GroupRule& how, const std::vector<int64_t>& lengths = {}) {
  std::vector<float> out(rewards.size(), kNan);
  const TokenRows<float> rows{rewards.data(), nullptr, out.data(), int64_t(rewards.size()), 1};
  group_advantages(rows, lengths.empty() ? nullptr : lengths.data(), groups, how, Serial{});
  return out;
}

}  // namespace

TEST(Groups, IdsGatherRowsInOrder) {
  const int64_t high = std::numeric_limits<int64_t>::max();
  const std::vector<int64_t> ids{high, -5, high, 0, -5, high};
  const Groups groups = groups_of_ids(ids.data(), 6);
  EXPECT_EQ(groups.rows, (std::vector<int64_t>{0, 2, 5, 1, 4, 3}));
  EXPECT_EQ(groups.offsets, (std::vector<int64_t>{0, 3, 5, 6}));
}

TEST(Groups, ManyIdsOfEverySpacing) {
  for (int64_t spacing : {int64_t{1}, int64_t{1} << 32, int64_t{1} << 55}) {
    std::vector<int64_t> ids(1000);
    for (int64_t i = 0; i < 1000; ++i) ids[size_t(i)] = (i * 7 % 125) * spacing;
    const Groups groups = groups_of_ids(ids.data(), 1000);
    ASSERT_EQ(groups.offsets.size(), 126u);
    for (size_t g = 0; g < 125; ++g) {
      EXPECT_EQ(groups.offsets[g], int64_t(8 * g));
      for (size_t i = 8 * g; i < 8 * g + 8; ++i) {
        EXPECT_EQ(ids[size_t(groups.rows[i])], ids[size_t(groups.rows[8 * g])]);
      }
    }
  }
}

TEST(Groups, SizesThatDoNotCoverTheRowsAreRejected) {
  const int64_t high = std::numeric_limits<int64_t>::max();
  const std::vector<std::vector<int64_t>> wrong{{4, 3}, {9, -1}, {9}, {high, high}, {}};
  for (const auto& sizes : wrong) {
    EXPECT_THROW(groups_of_sizes(sizes.data(), int64_t(sizes.size()), 8), std::invalid_argument);
  }
  EXPECT_THROW(groups_of_size(3, 8), std::invalid_argument);
  EXPECT_THROW(groups_of_size(0, 8), std::invalid_argument);
  const std::vector<int64_t> right{0, 8, 0};
  EXPECT_EQ(groups_of_sizes(right.data(), 3, 8).offsets, (std::vector<int64_t>{0, 0, 8, 8}));
}

TEST(GroupAdvantages, EveryBaselineAgainstHandComputedValues) {
  // Groups {1, 2, 6} (mean 3, std sqrt 7) and {4} alone.
  const std::vector<float> rewards{1, 2, 6, 4};
  const std::vector<int64_t> sizes{3, 1}, lengths{10, 20, 70, 5};
  const Groups groups = groups_of_sizes(sizes.data(), 2, 4);
  const double std_of_group = std::sqrt(7.0) + 1e-6;
  const auto mean = advantages(rewards, groups, rule("mean", "std"));
  EXPECT_FLOAT_EQ(mean[0], float(-2 / std_of_group));
  EXPECT_FLOAT_EQ(mean[2], float(3 / std_of_group));
  EXPECT_FLOAT_EQ(mean[3], float(4 / (1 + 1e-6)));
  EXPECT_EQ(advantages(rewards, groups, rule("loo", "none")),
            (std::vector<float>{-3, -1.5, 4.5, 4}));
  EXPECT_EQ(advantages(rewards, groups, rule("none", "none")), rewards);
  // (10 + 40 + 420) / 100 = 4.7
  const auto opo = advantages(rewards, groups, rule("opo", "none"), lengths);
  EXPECT_FLOAT_EQ(opo[0], -3.7f);
  EXPECT_FLOAT_EQ(opo[2], 1.3f);
  // All four: mean 3.25, sum of squared deviations 14.75.
  const auto batch = advantages(rewards, groups, rule("mean", "batch_std"));
  EXPECT_FLOAT_EQ(batch[1], float(-1 / (std::sqrt(14.75 / 3) + 1e-6)));
}

TEST(GroupAdvantages, MaskedTokensAreNeverRead) {
  const int64_t rows = 6, steps = 37;
  std::vector<float> rewards(rows * steps), out(rows * steps, kNan);
  MaskBytes mask(rows * steps);
  std::vector<double> scores(rows, 0.0);
  for (int64_t i = 0; i < rows * steps; ++i) {
    mask.get()[i] = i % 3 != 1;
    rewards[i] = mask.get()[i] ? noise(i) : kNan;
    if (mask.get()[i]) scores[i / steps] += double(rewards[i]);
  }
  const TokenRows<float> tokens{rewards.data(), mask.get(), out.data(), rows, steps};
  group_advantages(tokens, nullptr, groups_of_size(2, rows), rule("mean", "none"), Serial{});
  for (int64_t i = 0; i < rows * steps; ++i) {
    const int64_t row = i / steps, other = row ^ 1;
    const double expected = mask.get()[i] ? (scores[row] - scores[other]) / 2 : 0.0;
    EXPECT_NEAR(out[i], expected, 1e-6);
  }
}

// The textbook loop on one sequence: the kernel must give the same bits in every lane.
TEST(Gae, EveryLaneIsTheSequentialScan) {
  const std::vector<int64_t> lengths{5,  0,  63, 1, 16, 200, 7,  31, 32,
                                     33, 90, 2,  8, 64, 15,  17, 100};
  std::vector<int64_t> offsets{0};
  for (int64_t length : lengths) offsets.push_back(offsets.back() + length);
  const int64_t count = offsets.back(), sequences = int64_t(lengths.size());
  // Exactly as large as needed, so that the sanitizer sees a read or write past a sequence.
  std::vector<float> rewards(count), values(count), got_a(count, kNan), got_r(count, kNan);
  std::vector<float> bootstrap(sequences), expected_a(count), expected_r(count);
  MaskBytes mask(count);
  for (int64_t i = 0; i < count; ++i) {
    mask.get()[i] = i % 5 != 2;
    rewards[i] = mask.get()[i] ? noise(i) : kNan;
    values[i] = mask.get()[i] ? noise(i + 10000) : kNan;
  }
  const float gamma = 0.99f, gamma_lam = float(0.99 * 0.95);
  for (int64_t s = 0; s < sequences; ++s) {
    bootstrap[s] = noise(s + 777);
    float next = bootstrap[s], advantage = 0;
    for (int64_t t = offsets[s + 1] - 1; t >= offsets[s]; --t) {
      if (!mask.get()[t]) continue;
      advantage = rewards[t] + gamma * next - values[t] + gamma_lam * advantage;
      next = values[t];
      expected_a[t] = advantage;
      expected_r[t] = advantage + values[t];
    }
  }
  const GaeArgs<float> args{rewards.data(),
                            values.data(),
                            mask.get(),
                            bootstrap.data(),
                            offsets.data(),
                            got_a.data(),
                            got_r.data(),
                            sequences,
                            0,
                            0,
                            0,
                            0,
                            1,
                            gamma,
                            gamma_lam};
  gae(args, 0, 3);  // split as threads would, at places that are no multiple of the lanes
  gae(args, 3, sequences);
  EXPECT_EQ(got_a, expected_a);
  EXPECT_EQ(got_r, expected_r);
}

TEST(Gae, OffsetsMustCoverTheInput) {
  const std::vector<std::vector<int64_t>> wrong{{0, 3}, {1, 4}, {0, 3, 2, 4}, {}};
  for (const auto& offsets : wrong) {
    EXPECT_THROW(check_cu_seqlens(offsets.data(), int64_t(offsets.size()), 4),
                 std::invalid_argument);
  }
  const std::vector<int64_t> right{0, 0, 4};
  EXPECT_NO_THROW(check_cu_seqlens(right.data(), 3, 4));
}

TEST(Whiten, BlocksAddUpAndMaskedGarbageIsIgnored) {
  const int64_t count = 2 * kWhitenBlock + 7;
  std::vector<float> values(count), out(count);
  MaskBytes mask(count);
  double sum = 0;
  int64_t kept = 0;
  for (int64_t i = 0; i < count; ++i) {
    mask.get()[i] = i % 3 != 0;
    values[i] = mask.get()[i] ? noise(i) : kNan;
    if (mask.get()[i]) sum += double(values[i]), ++kept;
  }
  const WhitenArgs<float> args{values.data(), mask.get(), out.data(), count, true};
  std::vector<WhitenPartial> partials(whiten_blocks(count));
  ASSERT_EQ(partials.size(), 3u);
  whiten_reduce(args, 1, 0.0, partials.data(), 0, 3);
  double total = 0;
  int64_t total_count = 0;
  for (const auto& partial : partials) total += partial.sum, total_count += partial.count;
  EXPECT_EQ(total_count, kept);
  EXPECT_NEAR(total, sum, 1e-9);
  whiten_write(args, 0.5, 2.0, 0, 3);
  for (int64_t i = 0; i < count; ++i) {
    EXPECT_FLOAT_EQ(out[i], mask.get()[i] ? float((double(values[i]) - 0.5) * 2.0) : 0.0f);
  }
}
