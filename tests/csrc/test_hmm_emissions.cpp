// combine_emissions: the float kernels, a token a lane, against the exact rows in double, with
// every tensor in memory of its own so that AddressSanitizer sees a read or write past an end.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <vector>

#include "hmm/cpu/hmm.h"

using namespace oneshot;
using namespace oneshot::cpu;

namespace {

double noise(int64_t i) {
  uint64_t x = uint64_t(i) * 0x9e3779b97f4a7c15u + 0x51ed27u;
  x ^= x >> 29, x *= 0xbf58476d1ce4e5b9u, x ^= x >> 32;
  return double(x & 0xffffff) / 4194304.0 - 2.0;
}

struct Shape {
  int64_t tokens, sources, states, labels;
};

template <typename T>
struct Evidence {
  std::vector<T> log_emissions, soft, weights, upstream;
  std::vector<int64_t> ids;
  std::vector<T> out, by_log_emissions, by_soft, by_weights;

  Evidence(const Shape& s, bool constant, bool with_ids, bool normalize) {
    const int64_t places = s.tokens * s.sources, square = s.states * s.labels;
    for (int64_t i = 0; i < (constant ? s.sources : places) * square; ++i) {
      // Now and then a label far below the others, or ruled out.
      const double x = i % 37 == 5 ? -400.0 : i % 41 == 7 ? -INFINITY : 3.0 * noise(i);
      log_emissions.push_back(T(float(x)));
    }
    for (int64_t i = 0; i < places; ++i) {
      const bool silent = i % 5 == 3;
      ids.push_back(silent ? -1 : (i * 7) % s.labels);
      for (int64_t j = 0; j < s.labels; ++j) {
        const double x = noise(90000 + i * s.labels + j);
        soft.push_back(T(float(silent || x < -1.0 ? 0.0 : x + 1.5)));
      }
    }
    for (int64_t i = 0; i < s.sources; ++i) weights.push_back(T(float(noise(70 + i) + 2.1)));
    for (int64_t i = 0; i < s.tokens * s.states; ++i) {
      upstream.push_back(i % 11 == 2 ? T(0) : T(float(noise(500 + i))));
    }
    EmissionInput<T> in;
    in.log_emissions = log_emissions.data(), in.constant = constant;
    in.soft = with_ids ? nullptr : soft.data(), in.ids = with_ids ? ids.data() : nullptr;
    in.weights = weights.data(), in.normalize = normalize;
    in.tokens = s.tokens, in.sources = s.sources, in.states = s.states, in.labels = s.labels;
    const T nan = std::numeric_limits<T>::quiet_NaN();
    out.assign(size_t(s.tokens * s.states), nan);
    by_log_emissions.assign(log_emissions.size(), nan);
    by_soft.assign(with_ids ? 0 : soft.size(), nan);
    by_weights.assign(weights.size(), nan);
    combine_emissions(in, out.data(), {});
    EmissionGradients<T> grads;
    grads.upstream = upstream.data(), grads.log_emissions = by_log_emissions.data();
    grads.soft = with_ids ? nullptr : by_soft.data(), grads.weights = by_weights.data();
    combine_emissions_backward(in, grads, {});
  }
};

void expect_close(const std::vector<float>& found, const std::vector<double>& expected,
                  double tolerance, const char* what) {
  ASSERT_EQ(found.size(), expected.size());
  for (size_t i = 0; i < found.size(); ++i) {
    if (std::isinf(float(expected[i]))) {  // or beyond the range of float
      EXPECT_EQ(found[i], float(expected[i])) << what << " " << i;
    } else {
      EXPECT_NEAR(double(found[i]), expected[i], tolerance * (1.0 + std::fabs(expected[i])))
          << what << " " << i;
    }
  }
}

}  // namespace

TEST(HmmEmissions, LanesAgreeWithExactRows) {
  for (const Shape& s : {Shape{1, 1, 1, 1}, Shape{7, 3, 2, 3}, Shape{16, 2, 5, 5},
                         Shape{63, 4, 3, 17}, Shape{33, 2, 40, 33}}) {
    for (int flags = 0; flags < 8; ++flags) {
      const bool constant = flags & 1, with_ids = flags & 2, normalize = flags & 4;
      SCOPED_TRACE(testing::Message() << s.tokens << " tokens, flags " << flags);
      const Evidence<float> found(s, constant, with_ids, normalize);
      const Evidence<double> exact(s, constant, with_ids, normalize);
      expect_close(found.out, exact.out, 3e-6, "value");
      expect_close(found.by_log_emissions, exact.by_log_emissions, 1e-5, "log_emissions");
      expect_close(found.by_soft, exact.by_soft, 1e-5, "observations");
      expect_close(found.by_weights, exact.by_weights, 1e-5, "weights");
    }
  }
}

TEST(HmmEmissions, ABadIdIsNamed) {
  const std::vector<int64_t> ids = {-1, 0, 4, 5};
  EXPECT_EQ(emission_bad_id(ids.data(), 4, 5), 3);
  EXPECT_EQ(emission_bad_id(ids.data(), 3, 5), -1);
}
