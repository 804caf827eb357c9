#include "hmm/cpu/hmm.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <functional>
#include <limits>
#include <thread>
#include <vector>

using namespace oneshot;
using namespace oneshot::cpu;

namespace {

constexpr double kInf = std::numeric_limits<double>::infinity();

// A repeatable pseudo-random number in [-2, 2).
double noise(int64_t i) {
  uint64_t x = uint64_t(i) * 0x9e3779b97f4a7c15u + 0x1234567u;
  x ^= x >> 29, x *= 0xbf58476d1ce4e5b9u, x ^= x >> 32;
  return double(x & 0xffffff) / 4194304.0 - 2.0;
}

// A batch with room of its own for every tensor, so that AddressSanitizer sees a read past an end.
template <typename T>
struct Chains {
  int64_t batch, steps, states;
  bool shared;  // one matrix for everything
  std::vector<T> init, trans, emit, final;
  std::vector<int64_t> lengths;
  std::vector<T> log_likelihood, gamma, xi, xi_sum;

  Chains(int64_t batch, int64_t steps, int64_t states, bool shared)
      : batch(batch), steps(steps), states(states), shared(shared) {
    const int64_t matrices = shared ? 1 : batch * (steps - 1);
    for (int64_t i = 0; i < states; ++i) init.push_back(T(noise(i)));
    for (int64_t i = 0; i < states; ++i) final.push_back(T(noise(100 + i)));
    for (int64_t i = 0; i < matrices * states * states; ++i) trans.push_back(T(noise(1000 + i)));
    for (int64_t i = 0; i < batch * steps * states; ++i) emit.push_back(T(noise(50000 + i)));
    for (int64_t b = 0; b < batch; ++b) lengths.push_back(steps - b % steps);
  }

  HmmInput<T> input() const {
    HmmInput<T> in;
    in.log_init = init.data(), in.log_trans = trans.data(), in.log_emit = emit.data();
    in.log_final = final.data(), in.lengths = lengths.data();
    in.batch = batch, in.steps = steps, in.states = states;
    in.trans_step_stride = shared ? 0 : states * states;
    in.trans_batch_stride = shared ? 0 : (steps - 1) * states * states;
    in.emit_step_stride = states, in.emit_batch_stride = steps * states;
    in.homogeneous = shared && steps > 2;
    return in;
  }

  void run(const Workers& workers = {}) {
    const T never = std::numeric_limits<T>::quiet_NaN();
    log_likelihood.assign(size_t(batch), never);
    gamma.assign(size_t(batch * steps * states), never);
    xi.assign(size_t(batch * (steps - 1) * states * states), never);
    xi_sum.assign(size_t(batch * states * states), never);
    hmm_posteriors(input(), {log_likelihood.data(), gamma.data(), xi.data(), xi_sum.data()},
                   workers);
  }

  const T* matrix(int64_t b, int64_t t) const {
    return trans.data() + (shared ? 0 : (b * (steps - 1) + t) * states * states);
  }

  // visit(path, score) for all paths of sequence b.
  void every_path(int64_t b,
                  const std::function<void(const std::vector<int64_t>&, double)>& visit) const {
    std::vector<int64_t> path(size_t(lengths[size_t(b)]), 0);
    while (true) {
      double score = double(init[size_t(path[0])]) + double(final[size_t(path.back())]);
      for (size_t t = 0; t < path.size(); ++t) {
        score += double(emit[size_t((b * steps + int64_t(t)) * states + path[t])]);
        if (t > 0) score += double(matrix(b, int64_t(t) - 1)[path[t - 1] * states + path[t]]);
      }
      visit(path, score);
      size_t t = 0;
      while (t < path.size() && ++path[t] == states) path[t++] = 0;
      if (t == path.size()) return;
    }
  }
};

template <typename T>
void compare_with_enumeration(int64_t states, bool shared, double tolerance) {
  Chains<T> chains(3, 4, states, shared);
  chains.run();
  const int64_t steps = chains.steps;
  for (int64_t b = 0; b < chains.batch; ++b) {
    double z = 0.0;
    chains.every_path(b, [&](const std::vector<int64_t>&, double s) { z += std::exp(s); });
    std::vector<double> gamma(size_t(steps * states)), xi(size_t((steps - 1) * states * states));
    std::vector<double> sum(size_t(states * states));
    chains.every_path(b, [&](const std::vector<int64_t>& path, double score) {
      const double p = std::exp(score) / z;
      for (size_t t = 0; t < path.size(); ++t) {
        gamma[t * size_t(states) + size_t(path[t])] += p;
        if (t == 0) continue;
        const auto pair = size_t(path[t - 1] * states + path[t]);
        xi[(t - 1) * size_t(states * states) + pair] += p;
        sum[pair] += p;
      }
    });
    EXPECT_NEAR(double(chains.log_likelihood[size_t(b)]), std::log(z), 8 * tolerance);
    for (size_t i = 0; i < gamma.size(); ++i) {
      EXPECT_NEAR(double(chains.gamma[size_t(b) * gamma.size() + i]), gamma[i], tolerance);
    }
    for (size_t i = 0; i < xi.size(); ++i) {
      EXPECT_NEAR(double(chains.xi[size_t(b) * xi.size() + i]), xi[i], tolerance);
    }
    for (size_t i = 0; i < sum.size(); ++i) {
      EXPECT_NEAR(double(chains.xi_sum[size_t(b) * sum.size() + i]), sum[i], 4 * tolerance);
    }
  }
}

// Two threads for every call.
Workers two_threads() {
  Workers workers;
  workers.threads = 2;
  workers.run = [](int64_t count, const std::function<void(int64_t)>& body) {
    std::thread other([&] {
      for (int64_t i = 1; i < count; i += 2) body(i);
    });
    for (int64_t i = 0; i < count; i += 2) body(i);
    other.join();
  };
  return workers;
}

template <typename T>
bool same_bits(const std::vector<T>& a, const std::vector<T>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0;
}

}  // namespace

TEST(Hmm, EqualsEnumeration) {
  for (const bool shared : {false, true}) {
    for (const int64_t states : {1, 2, 3, 5, 7}) {
      compare_with_enumeration<float>(states, shared, 1e-6);
      compare_with_enumeration<double>(states, shared, 1e-13);
    }
  }
}

TEST(Hmm, RowsOfPairsAreTheStates) {
  for (const bool shared : {false, true}) {
    for (const int64_t states : {8, 9, 16, 17, 33, 64, 65, 129}) {
      Chains<float> chains(2, 6, states, shared);
      chains.run();
      const float* gamma = chains.gamma.data();  // of sequence 0, which fills all steps
      for (int64_t t = 0; t + 1 < chains.steps; ++t) {
        for (int64_t i = 0; i < states; ++i) {
          double row = 0.0;
          const float* xi = chains.xi.data() + (t * states + i) * states;
          for (int64_t j = 0; j < states; ++j) row += double(xi[j]);
          EXPECT_NEAR(row, double(gamma[t * states + i]), 2e-6) << states << " " << t;
        }
      }
    }
  }
}

TEST(Hmm, ThreadsAndNeighboursChangeNoBit) {
  for (const bool shared : {false, true}) {
    for (const int64_t states : {3, 9, 40, 70}) {
      Chains<float> alone(1, 50, states, shared), pair(2, 50, states, shared);
      alone.run();
      Chains<float> threads = alone;
      threads.run(two_threads());
      EXPECT_TRUE(same_bits(alone.gamma, threads.gamma)) << states;
      EXPECT_TRUE(same_bits(alone.xi, threads.xi)) << states;
      EXPECT_TRUE(same_bits(alone.log_likelihood, threads.log_likelihood)) << states;
      pair.run();  // its first sequence is `alone`
      const std::vector<float> first(pair.gamma.begin(), pair.gamma.begin() + 50 * states);
      EXPECT_TRUE(same_bits(alone.gamma, first)) << states;
    }
  }
}

TEST(Hmm, PaddingIsNotReadAndComesBackAsZero) {
  Chains<float> chains(2, 5, 3, false);
  chains.lengths = {2, 0};
  std::fill(chains.emit.begin() + 2 * 3, chains.emit.end(), NAN);
  std::fill(chains.trans.begin() + 9, chains.trans.end(), NAN);
  chains.run();
  EXPECT_TRUE(std::isfinite(chains.log_likelihood[0]));
  EXPECT_EQ(chains.log_likelihood[1], 0.0f);
  for (size_t i = 2 * 3; i < chains.gamma.size(); ++i) EXPECT_EQ(chains.gamma[i], 0.0f);
  for (size_t i = 9; i < chains.xi.size(); ++i) EXPECT_EQ(chains.xi[i], 0.0f);
}

TEST(Hmm, AnImpossibleSequenceHasNoPosterior) {
  Chains<float> chains(1, 4, 3, false);
  for (int64_t i = 0; i < 3; ++i) chains.emit[size_t(3 + i)] = -float(kInf);
  chains.run();
  EXPECT_EQ(chains.log_likelihood[0], -float(kInf));
  for (const float p : chains.gamma) EXPECT_EQ(p, 0.0f);
  for (const float p : chains.xi) EXPECT_EQ(p, 0.0f);
  std::vector<int64_t> path(4, 7);
  float score = 0.0f;
  hmm_viterbi(chains.input(), path.data(), &score, {});
  EXPECT_EQ(score, -float(kInf));
  for (const int64_t state : path) EXPECT_EQ(state, -1);
}

TEST(Hmm, ASurvivorOfADeepDipIsFound) {
  // State 1 falls 100 nats behind, then state 0 is ruled out: float32 alone would lose everything.
  Chains<float> chains(1, 6, 2, false);
  std::fill(chains.init.begin(), chains.init.end(), 0.0f);
  std::fill(chains.final.begin(), chains.final.end(), 0.0f);
  std::fill(chains.emit.begin(), chains.emit.end(), 0.0f);
  for (size_t t = 0; t < 5; ++t) {
    const float stay[4] = {0.0f, -float(kInf), -float(kInf), 0.0f};
    std::copy(stay, stay + 4, chains.trans.begin() + long(4 * t));
  }
  chains.emit[2 * 1 + 1] = -100.0f;
  chains.emit[2 * 4 + 0] = -float(kInf);
  chains.run();
  EXPECT_NEAR(chains.log_likelihood[0], -100.0, 1e-4);
  for (size_t t = 0; t < 6; ++t) EXPECT_NEAR(chains.gamma[2 * t + 1], 1.0, 1e-6);
}

TEST(Hmm, ViterbiIsTheBestPathAndTiesGoLow) {
  for (const int64_t states : {2, 3, 5}) {
    Chains<double> chains(2, 4, states, false);
    std::vector<int64_t> path(8);
    std::vector<double> score(2);
    hmm_viterbi(chains.input(), path.data(), score.data(), {});
    for (int64_t b = 0; b < 2; ++b) {
      double best = -kInf;
      std::vector<int64_t> found;
      chains.every_path(b, [&](const std::vector<int64_t>& candidate, double s) {
        if (s > best) best = s, found = candidate;
      });
      EXPECT_NEAR(score[size_t(b)], best, 1e-12);
      for (size_t t = 0; t < found.size(); ++t) EXPECT_EQ(path[size_t(4 * b) + t], found[t]);
    }
  }
  Chains<float> flat(1, 5, 9, true);
  for (auto* all : {&flat.init, &flat.trans, &flat.emit, &flat.final}) {
    std::fill(all->begin(), all->end(), 0.0f);
  }
  std::vector<int64_t> path(5, 7);
  float score = 1.0f;
  hmm_viterbi(flat.input(), path.data(), &score, {});
  EXPECT_EQ(score, 0.0f);
  for (const int64_t state : path) EXPECT_EQ(state, 0);
}

TEST(Hmm, SamplesDependOnIdAndSeedAlone) {
  Chains<float> chains(3, 6, 4, false);
  chains.lengths = {6, 6, 6};
  std::vector<int64_t> ids = {5, 6, 7}, one(18), two(18), other(18);
  hmm_sample(chains.input(), {ids.data(), 1, 11}, one.data(), {});
  hmm_sample(chains.input(), {ids.data(), 1, 11}, two.data(), two_threads());
  hmm_sample(chains.input(), {ids.data(), 1, 12}, other.data(), {});
  EXPECT_EQ(one, two);
  EXPECT_NE(one, other);
  for (const int64_t state : one) EXPECT_TRUE(state >= 0 && state < 4);
}

TEST(Hmm, ABadLengthIsNamed) {
  const int64_t lengths[3] = {1, 7, -1};
  EXPECT_EQ(hmm_bad_length(lengths, 3, 7), 2);
  EXPECT_EQ(hmm_bad_length(lengths, 2, 7), -1);
}
