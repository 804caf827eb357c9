#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <vector>

#include "cpu/advantage.h"

using namespace oneshot::cpu;

TEST(Whiten, BlocksAddUpAndMaskedGarbageIsIgnored) {
  const int64_t count = 2 * kWhitenBlock + 7;
  std::vector<float> values(count), out(count);
  std::vector<char> bytes(count);
  double sum = 0;
  int64_t kept = 0;
  for (int64_t i = 0; i < count; ++i) {
    bytes[i] = i % 3 != 0;
    values[i] = bytes[i] ? float(std::sin(double(i))) : std::numeric_limits<float>::quiet_NaN();
    if (bytes[i]) sum += double(values[i]), ++kept;
  }
  const WhitenArgs<float> args{values.data(), reinterpret_cast<const bool*>(bytes.data()),
                               out.data(), count, true};
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
    EXPECT_FLOAT_EQ(out[i], bytes[i] ? float((double(values[i]) - 0.5) * 2.0) : 0.0f);
  }
}
