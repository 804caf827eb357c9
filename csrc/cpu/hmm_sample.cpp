// Forward filtering, backward sampling with a counter-based generator.
#include <algorithm>
#include <vector>

#include "cpu/hmm_exact.h"

namespace oneshot::cpu {
namespace {

struct Words {
  uint32_t word[4];
};

// Philox4x32-10 (Salmon et al. 2011).
Words philox(Words counter, uint32_t key0, uint32_t key1) {
  uint32_t (&c)[4] = counter.word;
  for (int round = 0; round < 10; ++round) {
    const uint64_t first = uint64_t{0xD2511F53u} * c[0], second = uint64_t{0xCD9E8D57u} * c[2];
    const uint32_t c1 = c[1], c3 = c[3];
    c[0] = uint32_t(second >> 32) ^ c1 ^ key0;
    c[1] = uint32_t(second);
    c[2] = uint32_t(first >> 32) ^ c3 ^ key1;
    c[3] = uint32_t(first);
    key0 += 0x9E3779B9u;
    key1 += 0xBB67AE85u;
  }
  return counter;
}

// Uniform in [0, 1): the first 24 bits for float, the first 53 for double.
template <typename T>
double uniform(uint64_t seed, uint64_t id, int64_t sample, int64_t t) {
  const Words w = philox({{uint32_t(id), uint32_t(id >> 32), uint32_t(sample), uint32_t(t)}},
                         uint32_t(seed), uint32_t(seed >> 32));
  if (sizeof(T) == sizeof(float)) return double(w.word[0] >> 8) * 0x1p-24;
  const uint64_t bits = (uint64_t{w.word[0]} << 21) | (w.word[1] >> 11);
  return double(bits) * 0x1p-53;
}

// The lowest state whose cumulative weight exceeds u times the total.
template <typename N>
int64_t draw(const std::vector<N>& weight, double u, std::vector<double>& cumulative) {
  N total{};
  for (const N& w : weight) total = total + w;
  double sum = 0.0;
  for (size_t i = 0; i < weight.size(); ++i) {
    sum += Number<N>::ratio(weight[i], total);
    cumulative[i] = sum;
  }
  const auto place = std::upper_bound(cumulative.begin(), cumulative.end(), u * sum);
  return std::min<int64_t>(place - cumulative.begin(), int64_t(weight.size()) - 1);
}

// False if N may have lost weight that matters.
template <typename N, typename T>
bool sample(const HmmSequence<T>& s, const HmmSampling& how, uint64_t id, int64_t* path,
            int64_t sample_stride) {
  ExactSweep<N, T> sweep(s);
  sweep.forward();
  if (!sweep.lossless()) return false;
  if (sweep.impossible()) return true;
  const auto states = size_t(s.states);
  std::vector<N> weight(states), leads(states);
  std::vector<T> column(states);
  std::vector<double> cumulative(states);
  for (int64_t n = 0; n < how.samples; ++n) {
    int64_t* z = path + n * sample_stride;
    for (int64_t t = s.length - 1; t >= 0; --t) {
      for (size_t i = 0; i < states; ++i) weight[i] = sweep.alpha(t)[i];
      if (t == s.length - 1) {
        for (size_t i = 0; i < states; ++i) weight[i] = weight[i] * sweep.final()[i];
      } else {
        const T* matrix = s.trans_into(t + 1) + z[t + 1];
        for (size_t i = 0; i < states; ++i) column[i] = matrix[i * states];
        hmm_load(column.data(), states, leads.data());
        for (size_t i = 0; i < states; ++i) weight[i] = weight[i] * leads[i];
      }
      z[t] = draw(weight, uniform<T>(how.seed, id, n, t), cumulative);
    }
  }
  return true;
}

template <typename T>
void sample_all(const HmmInput<T>& in, const HmmSampling& how, int64_t* paths,
                const Workers& workers) {
  const int64_t stride = in.batch * in.steps;
  workers.run(in.batch, [&](int64_t b) {
    int64_t* path = paths + b * in.steps;
    for (int64_t n = 0; n < how.samples; ++n) std::fill_n(path + n * stride, in.steps, -1);
    if (in.length(b) == 0) return;
    const HmmSequence<T> s(in, b);
    const auto id = uint64_t(how.sequence_ids == nullptr ? b : how.sequence_ids[b]);
    if (hmm_is_bad(s)) return;
    if (!sample<double>(s, how, id, path, stride)) sample<Wide>(s, how, id, path, stride);
  });
}

}  // namespace

void hmm_sample(const HmmInput<float>& in, const HmmSampling& how, int64_t* paths,
                const Workers& workers) {
  sample_all(in, how, paths, workers);
}

void hmm_sample(const HmmInput<double>& in, const HmmSampling& how, int64_t* paths,
                const Workers& workers) {
  sample_all(in, how, paths, workers);
}

}  // namespace oneshot::cpu
