#include "cpu/hmm.h"

#include <algorithm>

#include "cpu/hmm_exact.h"

namespace oneshot::cpu {

int64_t hmm_bad_length(const int64_t* lengths, int64_t batch, int64_t steps) {
  for (int64_t b = 0; lengths != nullptr && b < batch; ++b) {
    if (lengths[b] < 0 || lengths[b] > steps) return b;
  }
  return -1;
}

namespace {

// The outputs of sequence b, all zero behind its end.
template <typename T>
HmmSequenceOutputs<T> outputs_of(const HmmInput<T>& in, const HmmPosteriors<T>& out, int64_t b) {
  const int64_t row = in.states, square = in.states * in.states, length = in.length(b);
  HmmSequenceOutputs<T> o{out.log_likelihood + b, nullptr, nullptr, nullptr};
  if (out.gamma != nullptr) {
    o.gamma = out.gamma + b * in.steps * row;
    std::fill(o.gamma + length * row, o.gamma + in.steps * row, T(0));
  }
  if (out.xi != nullptr) {
    const int64_t pairs = std::max<int64_t>(length - 1, 0);
    o.xi = out.xi + b * (in.steps - 1) * square;
    std::fill(o.xi + pairs * square, o.xi + (in.steps - 1) * square, T(0));
  }
  if (out.xi_sum != nullptr) o.xi_sum = out.xi_sum + b * square;
  if (length == 0) {
    *o.log_likelihood = T(0);
    if (o.xi_sum != nullptr) std::fill_n(o.xi_sum, square, T(0));
  }
  return o;
}

}  // namespace

void hmm_posteriors(const HmmInput<double>& in, const HmmPosteriors<double>& out,
                    const Workers& workers) {
  workers.run(in.batch, [&](int64_t b) {
    const auto o = outputs_of(in, out, b);
    if (in.length(b) > 0) hmm_exact_posteriors(HmmSequence<double>(in, b), o);
  });
}

void hmm_posteriors(const HmmInput<float>& in, const HmmPosteriors<float>& out,
                    const Workers& workers) {
  workers.run(in.batch, [&](int64_t b) {
    const auto o = outputs_of(in, out, b);
    if (in.length(b) > 0) hmm_exact_posteriors(HmmSequence<float>(in, b), o);
  });
}

}  // namespace oneshot::cpu
