#include "routing/cpu/routing.h"

#include <gtest/gtest.h>

#include <cstring>
#include <memory>
#include <stdexcept>
#include <vector>

#include "common/parallel.h"

using namespace oneshot;
using namespace oneshot::cpu;

namespace {

// A repeatable pseudo-random number in [-1, 1).
float noise(int64_t i) {
  uint64_t x = uint64_t(i) * 0x9e3779b97f4a7c15u + 0x1234567u;
  x ^= x >> 29, x *= 0xbf58476d1ce4e5b9u, x ^= x >> 32;
  return float(x & 0xffffff) / 8388608.0f - 1.0f;
}

// Memory of exactly the size it has, so that AddressSanitizer sees a read past its end.
struct Numbers {
  std::unique_ptr<float[]> data;
  int64_t size;
  Numbers(int64_t size, int64_t seed) : data(new float[size_t(size)]), size(size) {
    for (int64_t i = 0; i < size; ++i) data[size_t(i)] = noise(i + 7919 * seed);
  }
  float operator[](int64_t i) const { return data[size_t(i)]; }
  float* get() { return data.get(); }
};

// Where element (i, j) of head h lies in a mixture.
int64_t place(const Inventory& v, int64_t h, int64_t i, int64_t j) {
  return v.transposed ? j * v.length() + h * v.p + i : i * v.length() + h * v.q + j;
}

}  // namespace

TEST(Routing, MixingAndItsGradientMatchDouble) {
  struct Case {
    int64_t heads, p, q;
  };
  const int64_t skills = 3, mixtures = 2;
  for (const Case& c :
       {Case{1, 1, 1}, {1, 7, 3}, {3, 63, 5}, {2, 5, 1000}, {4, 16, 17}, {1, 1000, 2}}) {
    for (const bool transposed : {false, true}) {
      Numbers skill(c.heads * skills * c.p * c.q, 1), weights(mixtures * c.heads * skills, 2);
      const Inventory v{DType::kFloat32, skill.get(), c.heads, skills, c.p, c.q, transposed};
      const int64_t size = v.rank() * v.length();
      Numbers mixture(mixtures * size, 3), up(mixtures * size, 4), gradient(skill.size, 5);
      mix({v, weights.get(), mixture.get(), mixtures}, 0, mix_items(v));
      std::vector<float> grad_weights(size_t(weights.size), 0.0f);
      mix_backward(
          {v, weights.get(), up.get(), gradient.get(), grad_weights.data(), true, mixtures},
          Serial{});
      std::vector<double> exact_weights(size_t(weights.size), 0.0);
      for (int64_t h = 0; h < c.heads; ++h) {
        for (int64_t i = 0; i < c.p; ++i) {
          for (int64_t j = 0; j < c.q; ++j) {
            const auto skill_at = [&](int64_t k) { return ((h * skills + k) * c.p + i) * c.q + j; };
            for (int64_t u = 0; u < mixtures; ++u) {
              double sum = 0.0;
              for (int64_t k = 0; k < skills; ++k) {
                const int64_t w = (u * c.heads + h) * skills + k;
                sum += double(weights[w]) * skill[skill_at(k)];
                exact_weights[size_t(w)] +=
                    double(up[u * size + place(v, h, i, j)]) * skill[skill_at(k)];
              }
              ASSERT_NEAR(mixture[u * size + place(v, h, i, j)], sum, 1e-6);
            }
            for (int64_t k = 0; k < skills; ++k) {
              double sum = 0.0;
              for (int64_t u = 0; u < mixtures; ++u) {
                sum += double(weights[(u * c.heads + h) * skills + k]) *
                       up[u * size + place(v, h, i, j)];
              }
              ASSERT_NEAR(gradient[skill_at(k)], sum, 1e-6);
            }
          }
        }
      }
      for (size_t w = 0; w < exact_weights.size(); ++w) {
        ASSERT_NEAR(grad_weights[w], exact_weights[w], 1e-4) << c.p << " x " << c.q;
      }
    }
  }
}

TEST(Routing, LoraAndItsGradientsMatchDouble) {
  struct Case {
    int64_t rank, d_in, d_out, groups, repeat;
  };
  const int64_t mixtures = 3;  // the last one serves no row
  const double scaling = 0.5;
  for (const Case& c : {Case{1, 1, 1, 1, 1},
                        {3, 7, 63, 5, 1},
                        {4, 64, 130, 4, 9},
                        {16, 257, 31, 2, 70},
                        {9, 1000, 300, 7, 3}}) {
    const int64_t rows = c.groups * c.repeat;
    Numbers x(rows * c.d_in, 1), a(mixtures * c.rank * c.d_in, 2), up(rows * c.d_out, 3);
    Numbers b(mixtures * c.rank * c.d_out, 4), base(rows * c.d_out, 5), y(rows * c.d_out, 6);
    Numbers shrunk(rows * c.rank, 7), grad_shrunk(rows * c.rank, 8), grad_x(x.size, 9);
    Numbers grad_a(a.size, 10), grad_b(b.size, 11);
    std::vector<int64_t> mixture_of;
    for (int64_t g = 0; g < c.groups; ++g) mixture_of.push_back((g * g + 1) % 2);
    const auto groups = group_rows(mixture_of.data(), c.groups, c.repeat, mixtures);
    const LoraShape shape{DType::kFloat32, mixtures, c.rank, c.d_in, c.d_out};
    lora({shape, x.get(), a.get(), b.get(), base.get(), shrunk.get(), y.get(), scaling}, groups, 0,
         int64_t(groups.blocks.size()));
    // One thread takes whole mixtures; for seven there are too few, so they share blocks and sums.
    Numbers other_a(a.size, 12), other_b(b.size, 13);
    for (const int64_t threads : {1, 7}) {
      EXPECT_EQ(even_mixtures(groups, threads), threads == 1);
      lora_backward({shape, up.get(), x.get(), a.get(), b.get(), shrunk.get(), grad_shrunk.get(),
                     grad_x.get(), (threads == 1 ? grad_a : other_a).get(),
                     (threads == 1 ? grad_b : other_b).get(), scaling},
                    groups, threads, Serial{});
    }
    for (int64_t i = 0; i < a.size; ++i) ASSERT_EQ(grad_a[i], other_a[i]);
    for (int64_t i = 0; i < b.size; ++i) ASSERT_EQ(grad_b[i], other_b[i]);

    std::vector<double> exact_a(size_t(a.size), 0.0), exact_b(size_t(b.size), 0.0);
    for (int64_t n = 0; n < rows; ++n) {
      const int64_t u = mixture_of[size_t(n / c.repeat)];
      std::vector<double> small(size_t(c.rank), 0.0), slope(size_t(c.rank), 0.0);
      std::vector<double> out(size_t(c.d_out), 0.0), back(size_t(c.d_in), 0.0);
      for (int64_t j = 0; j < c.rank; ++j) {
        const int64_t from_a = (u * c.rank + j) * c.d_in, from_b = (u * c.rank + j) * c.d_out;
        for (int64_t i = 0; i < c.d_in; ++i) small[j] += double(x[n * c.d_in + i]) * a[from_a + i];
        for (int64_t o = 0; o < c.d_out; ++o) {
          slope[j] += double(up[n * c.d_out + o]) * b[from_b + o];
          out[o] += scaling * small[j] * b[from_b + o];
          exact_b[size_t(from_b + o)] += scaling * small[j] * up[n * c.d_out + o];
        }
        for (int64_t i = 0; i < c.d_in; ++i) {
          back[i] += scaling * slope[j] * a[from_a + i];
          exact_a[size_t(from_a + i)] += scaling * slope[j] * x[n * c.d_in + i];
        }
      }
      for (int64_t o = 0; o < c.d_out; ++o) {
        ASSERT_NEAR(y[n * c.d_out + o], base[n * c.d_out + o] + out[o], 1e-4) << c.rank;
      }
      for (int64_t i = 0; i < c.d_in; ++i) {
        ASSERT_NEAR(grad_x[n * c.d_in + i], back[i], 1e-4) << c.rank;
      }
    }
    for (int64_t i = 0; i < a.size; ++i) ASSERT_NEAR(grad_a[i], exact_a[i], 1e-3) << c.rank;
    for (int64_t o = 0; o < b.size; ++o) ASSERT_NEAR(grad_b[o], exact_b[o], 1e-3) << c.rank;
  }
}

TEST(Routing, RowsOfOtherMixturesChangeNoBit) {
  const int64_t rows = 70, d = 200, rank = 5, mixtures = 4;
  Numbers x(rows * d, 1), a(mixtures * rank * d, 2), b(mixtures * rank * d, 3);
  Numbers shrunk(rows * rank, 4), y(rows * d, 5), alone(d, 6);
  std::vector<int64_t> mixture_of;
  for (int64_t n = 0; n < rows; ++n) mixture_of.push_back(n * 7 % mixtures);
  const LoraShape shape{DType::kFloat32, mixtures, rank, d, d};
  const auto together = group_rows(mixture_of.data(), rows, 1, mixtures);
  lora({shape, x.get(), a.get(), b.get(), nullptr, shrunk.get(), y.get(), 2.0}, together, 0,
       int64_t(together.blocks.size()));
  for (int64_t n = 0; n < rows; ++n) {
    const auto one = group_rows(&mixture_of[size_t(n)], 1, 1, mixtures);
    lora({shape, x.get() + n * d, a.get(), b.get(), nullptr, shrunk.get(), alone.get(), 2.0}, one,
         0, 1);
    ASSERT_EQ(std::memcmp(alone.get(), y.get() + n * d, size_t(d) * sizeof(float)), 0) << n;
  }
}

TEST(Routing, RowsAreListedMixtureByMixture) {
  const std::vector<int64_t> mixture_of{2, 0, 2};
  const auto groups = group_rows(mixture_of.data(), 3, 2, 4);
  EXPECT_EQ(groups.rows, (std::vector<int64_t>{2, 3, 0, 1, 4, 5}));
  EXPECT_EQ(groups.offsets, (std::vector<int64_t>{0, 2, 2, 6, 6}));
  ASSERT_EQ(groups.blocks.size(), 2u);
  EXPECT_EQ(groups.blocks[1].mixture, 2);
  for (const int64_t bad : {int64_t{-1}, int64_t{4}}) {
    EXPECT_THROW(group_rows(&bad, 1, 1, 4), std::invalid_argument);
  }
}
