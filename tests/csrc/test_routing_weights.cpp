#include "routing/cpu/weights.h"

#include <gtest/gtest.h>

#include <cmath>
#include <stdexcept>
#include <vector>

using namespace oneshot::cpu;

namespace {

double noise(int64_t i) { return 4.0 * std::sin(double(i) * 12.9898 + 1.0); }

// The weights of one head in double, and the gradient of sum upstream * weights.
void exact_head(const float* logits, const float* upstream, int64_t skills, double eps,
                std::vector<double>& weights, std::vector<double>& grad) {
  double total = eps, through = 0.0;
  std::vector<double> s;
  for (int64_t k = 0; k < skills; ++k) s.push_back(1.0 / (1.0 + std::exp(-double(logits[k]))));
  for (const double x : s) total += x;
  weights.clear(), grad.clear();
  for (int64_t k = 0; k < skills; ++k) {
    weights.push_back(s[size_t(k)] / total);
    through += double(upstream[k]) * weights.back();
  }
  for (int64_t k = 0; k < skills; ++k) {
    grad.push_back(s[size_t(k)] * (1.0 - s[size_t(k)]) / total * (double(upstream[k]) - through));
  }
}

}  // namespace

TEST(RoutingWeights, MatchDoubleForAnyShape) {
  struct Case {
    int64_t heads, skills;
  };
  for (const Case& c : {Case{1, 1}, {1, 7}, {3, 5}, {16, 8}, {2, 63}, {1, 1000}}) {
    const std::vector<int64_t> chosen{4, 0, 4};
    const int64_t layers = 2, tasks = 5, rows = 3, size = c.heads * c.skills;
    std::vector<float> logits, upstream;
    for (int64_t i = 0; i < layers * tasks * size; ++i) logits.push_back(float(noise(i)));
    for (int64_t i = 0; i < layers * rows * size; ++i) upstream.push_back(float(noise(i + 99)));
    std::vector<float> weights(upstream.size(), NAN), grad(logits.size(), NAN);
    const RoutingWeights args{logits.data(), chosen.data(), tasks, rows, c.heads, c.skills, 1e-3};
    routing_weights(args, weights.data(), 0, layers);
    routing_weights_backward(args, upstream.data(), weights.data(), grad.data(), 0, layers);
    std::vector<double> sums(logits.size(), 0.0), exact, exact_grad;
    for (int64_t layer = 0; layer < layers; ++layer) {
      for (int64_t u = 0; u < rows; ++u) {
        for (int64_t h = 0; h < c.heads; ++h) {
          const int64_t in = (layer * tasks + chosen[size_t(u)]) * size + h * c.skills;
          const int64_t out = (layer * rows + u) * size + h * c.skills;
          exact_head(&logits[size_t(in)], &upstream[size_t(out)], c.skills, 1e-3, exact,
                     exact_grad);
          for (int64_t k = 0; k < c.skills; ++k) {
            EXPECT_NEAR(weights[size_t(out + k)], exact[size_t(k)], 5e-7);
            sums[size_t(in + k)] += exact_grad[size_t(k)];
          }
        }
      }
    }
    for (size_t i = 0; i < sums.size(); ++i) EXPECT_NEAR(grad[i], sums[i], 3e-6) << i;
  }
}

TEST(RoutingWeights, DistinctTasksAreSortedAndFound) {
  const std::vector<int64_t> ids{7, 2, 7, 0};
  std::vector<int64_t> place(4, -1);
  EXPECT_EQ(distinct_tasks(ids.data(), 4, 8, place.data()), (std::vector<int64_t>{0, 2, 7}));
  EXPECT_EQ(place, (std::vector<int64_t>{2, 1, 2, 0}));
  EXPECT_TRUE(distinct_tasks(nullptr, 0, 8, nullptr).empty());
  for (const int64_t bad : {int64_t{-1}, int64_t{8}}) {
    EXPECT_THROW(distinct_tasks(&bad, 1, 8, place.data()), std::invalid_argument);
  }
}
