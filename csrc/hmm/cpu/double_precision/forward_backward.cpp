#include "hmm/cpu/double_precision/forward_backward.h"

#include <algorithm>

#define ONESHOT_KERNEL_BODY "hmm/cpu/double_precision/exponentials.inc"
#include "cpu/foreach_isa.h"

namespace oneshot::cpu {

double hmm_exponentials(const float* x, int64_t count, double* out, double* lowest) {
  ONESHOT_DISPATCH_ISA(double_precision::load, x, count, out, lowest);
}

namespace {

template <typename T>
void fill(const HmmSequence<T>& s, const HmmSequenceOutputs<T>& out, double log_z, T value) {
  *out.log_likelihood = T(log_z);
  const int64_t rows = s.length * s.states, square = s.states * s.states;
  if (out.gamma != nullptr) std::fill_n(out.gamma, rows, value);
  if (out.xi != nullptr) std::fill_n(out.xi, (s.length - 1) * square, value);
  if (out.xi_sum != nullptr) std::fill_n(out.xi_sum, square, s.length > 1 ? value : T(0));
}

// False if N has lost weight that may matter.
template <typename N, typename T>
bool posteriors(const HmmSequence<T>& s, const HmmSequenceOutputs<T>& out) {
  DoubleSweep<N, T> sweep(s);
  sweep.forward();
  if (sweep.impossible()) {
    fill(s, out, sweep.log_z(), T(0));
    return std::is_same<N, ExtendedRange>::value || sweep.lossless();
  }
  *out.log_likelihood = T(sweep.log_z());
  const bool pairs = out.xi != nullptr || out.xi_sum != nullptr;
  if (out.gamma == nullptr && !pairs && sweep.lossless()) return true;

  const auto states = size_t(s.states);
  std::vector<double> pair_sum(out.xi_sum == nullptr ? 0 : states * states);
  const auto write_gamma = [&](int64_t t) {
    for (size_t i = 0; i < states && out.gamma != nullptr; ++i) {
      const N both = sweep.alpha(t)[i] * sweep.beta()[i];
      out.gamma[size_t(t) * states + i] = T(Number<N>::ratio(both, Number<N>::from_log(0.0)));
    }
  };
  sweep.start_back();
  write_gamma(s.length - 1);
  for (int64_t t = s.length - 1; t > 0; --t) {
    sweep.back(t);
    write_gamma(t - 1);
    for (size_t i = 0; i < states && pairs; ++i) {
      for (size_t ij = i * states; ij < (i + 1) * states; ++ij) {
        const N weight = sweep.alpha(t - 1)[i] * sweep.onward()[ij];
        const double pair = Number<N>::ratio(weight, sweep.pair_total());
        if (out.xi != nullptr) out.xi[size_t(t - 1) * states * states + ij] = T(pair);
        if (out.xi_sum != nullptr) pair_sum[ij] += pair;
      }
    }
  }
  for (size_t ij = 0; ij < pair_sum.size(); ++ij) out.xi_sum[ij] = T(pair_sum[ij]);
  return sweep.certified();
}

template <typename T>
void double_posteriors(const HmmSequence<T>& s, const HmmSequenceOutputs<T>& out) {
  if (hmm_is_bad(s)) {
    const T nan = std::numeric_limits<T>::quiet_NaN();
    fill(s, out, double(nan), nan);
  } else if (!posteriors<double>(s, out)) {
    posteriors<ExtendedRange>(s, out);
  }
}

}  // namespace

void hmm_double_posteriors(const HmmSequence<float>& s, const HmmSequenceOutputs<float>& out) {
  double_posteriors(s, out);
}

void hmm_double_posteriors(const HmmSequence<double>& s, const HmmSequenceOutputs<double>& out) {
  double_posteriors(s, out);
}

}  // namespace oneshot::cpu
