// Forward filtering, backward sampling with a counter-based generator.
#include <algorithm>
#include <type_traits>
#include <vector>

#include "common/philox.h"
#include "hmm/cpu/double_precision/forward_backward.h"
#include "hmm/cpu/forward_backward/sweep.h"
#include "hmm/cpu/hmm.h"
#include "hmm/cpu/sampling.h"

#define ONESHOT_KERNEL_BODY "hmm/cpu/sampling.inc"
#include "cpu/foreach_isa.h"

namespace oneshot::cpu {
namespace {

// False if float32 cannot be relied on, or a potential is NaN.
bool sample_float(const HmmSequence<float>& s, const HmmSampling& how, uint64_t id, int64_t* path,
                  int64_t stride) {
  const auto states = size_t(s.states), pitch = (states + 15) / 16 * 16, length = size_t(s.length);
  const size_t matrix = states * states + pitch;  // the last row is read in whole vectors
  std::vector<float> floats(length * (pitch + 1) + matrix + 2 * pitch);
  std::vector<double> cumulative(states);
  SampleMemory m{};
  m.pitch = int64_t(pitch);
  m.messages = floats.data();
  m.highs = m.messages + length * pitch;
  m.matrix = m.highs + length;
  m.row = m.matrix + matrix;
  m.final = m.row + pitch;
  m.cumulative = cumulative.data();
  ONESHOT_DISPATCH_ISA(hmm::sample_paths, s, m, how, id, path, stride);
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
  DoubleSweep<N, T> sweep(s);
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
    if constexpr (std::is_same<T, float>::value) {
      if (sample_float(s, how, id, path, stride)) return;
      for (int64_t n = 0; n < how.samples; ++n) std::fill_n(path + n * stride, s.length, -1);
    }
    if (hmm_is_bad(s)) return;
    if (!sample<double>(s, how, id, path, stride)) sample<ExtendedRange>(s, how, id, path, stride);
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
