// Forward-backward over one sequence in double, or in double with an extended range of exponents,
// written to be right: they serve float64, the gradient of the posteriors, and whatever the float32
// kernels cannot certify.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <type_traits>
#include <vector>

#include "hmm/cpu/double_precision/extended_range.h"
#include "hmm/cpu/sequence.h"

namespace oneshot::cpu {

// Whether a place that the sequence uses holds a NaN or +inf.
template <typename T>
bool hmm_is_bad(const HmmSequence<T>& s) {
  const auto bad = [](const T* x, int64_t count) {
    bool found = false;
    for (int64_t i = 0; i < count; ++i) found |= !(x[i] < std::numeric_limits<T>::infinity());
    return found;
  };
  bool found = bad(s.init, s.states) || (s.final != nullptr && bad(s.final, s.states));
  for (int64_t t = 0; t < s.length && !found; ++t) {
    found = bad(s.emit(t), s.states) || (t > 0 && bad(s.trans_into(t), s.states * s.states));
  }
  return found;
}

// out = exp(x - largest), 0 below e^-708; returns the largest. `lowest`: that of the finite ones,
// minus the largest. Nothing finite: zeros, 0 and 0. No NaN, no +inf.
double hmm_exponentials(const float* x, int64_t count, double* out, double* lowest);

// The same for every kind of number, with the exponent of the lowest.
template <typename N, typename T>
double hmm_load(const T* x, size_t count, N* out, double* lowest_exponent = nullptr) {
  constexpr double kNever = -std::numeric_limits<double>::infinity();
  double high = kNever, lowest = 0.0;
  if constexpr (std::is_same<N, double>::value && std::is_same<T, float>::value) {
    high = hmm_exponentials(x, int64_t(count), out, &lowest);
  } else {
    for (size_t i = 0; i < count; ++i) high = std::max(high, double(x[i]));
    if (high == kNever) high = 0.0;
    for (size_t i = 0; i < count; ++i) {
      const double shifted = double(x[i]) - high;
      out[i] = Number<N>::from_log(shifted);
      if (shifted != kNever) lowest = std::min(lowest, shifted);
    }
  }
  if (lowest_exponent != nullptr) *lowest_exponent = std::min(*lowest_exponent, lowest / kLn2);
  return high;
}

// Weights are exp(potential - largest of the row or matrix), and the forward message of every step
// is scaled by a power of two to a sum in [1, 2), so that only ratios of weights have to fit the
// range of N. Where they do not fit double, weight is lost; see lossless() and certified().
template <typename N, typename T>
class DoubleSweep {
 public:
  explicit DoubleSweep(const HmmSequence<T>& sequence)
      : s_(sequence),
        states_(size_t(sequence.states)),
        emit_(states_),
        final_(states_, Number<N>::from_log(0.0)),
        trans_(states_ * states_),
        exponent_(size_t(sequence.length)) {}

  // alpha(t)[i] = weight of all paths to state i of step t, for every t; then log Z. visit(t) is
  // called once alpha(t) is there, while trans() is the matrix into step t (for t > 0).
  template <typename Visit>
  void forward(const Visit& visit) {
    alpha_.assign(size_t(s_.length) * states_, N{});
    log_z_ = hmm_load(s_.init, states_, emit_.data(), &lowest_alpha_);
    std::copy(emit_.begin(), emit_.end(), alpha_.begin());
    log_z_ += hmm_load(s_.emit(0), states_, emit_.data(), &lowest_emit_);
    for (size_t i = 0; i < states_; ++i) alpha_[i] = alpha_[i] * emit_[i];
    settle(0);
    visit(0);
    for (int64_t t = 1; t < s_.length; ++t) {
      log_z_ += load_step(t);
      const N* from = alpha(t - 1);
      N* to = alpha_.data() + size_t(t) * states_;
      for (size_t i = 0; i < states_; ++i) {
        for (size_t j = 0; j < states_; ++j) to[j] = to[j] + from[i] * trans_[i * states_ + j];
      }
      for (size_t j = 0; j < states_; ++j) to[j] = to[j] * emit_[j];
      settle(t);
      visit(t);
    }
    if (s_.final != nullptr) log_z_ += hmm_load(s_.final, states_, final_.data(), &lowest_emit_);
    N total{};
    for (size_t i = 0; i < states_; ++i) total = total + alpha(s_.length - 1)[i] * final_[i];
    impossible_ = Number<N>::is_zero(total);
    log_z_ += Number<N>::log(total);
  }
  void forward() {
    forward([](int64_t) {});
  }

  const N* alpha(int64_t t) const { return alpha_.data() + size_t(t) * states_; }
  const N* trans() const { return trans_.data(); }
  const N* final() const { return final_.data(); }
  double log_z() const { return log_z_; }
  bool impossible() const { return impossible_; }

  // No finite weight can have been lost going forward: the smallest numbers multiplied still fit.
  bool lossless() const {
    return lowest_trans_ + lowest_emit_ + lowest_alpha_ > Number<N>::kLowestExponent + 8.0;
  }

  // beta()[i] = weight of all continuations of state i, such that sum alpha beta = 1: first of the
  // last step, then one step earlier with each call of back.
  const N* beta() const { return beta_.data(); }
  void start_back() {
    beta_ = final_;
    onward_.resize(trans_.size());
    normalise(s_.length - 1);
  }

  // From the beta of step t to that of step t - 1. Then onward()[i * K + j] = weight of all
  // continuations of state i of step t - 1 that go to j, and pair_total() the sum of alpha onward.
  void back(int64_t t) {
    load_step(t);
    for (size_t j = 0; j < states_; ++j) {
      emit_[j] = Number<N>::scaled(emit_[j] * beta_[j], -exponent_[size_t(t)]);
    }
    for (size_t i = 0; i < states_; ++i) {
      N sum{};
      for (size_t j = 0; j < states_; ++j) {
        const N weight = trans_[i * states_ + j] * emit_[j];
        onward_[i * states_ + j] = weight;
        sum = sum + weight;
      }
      beta_[i] = sum;
    }
    pair_total_ = normalise(t - 1);
  }
  const N* onward() const { return onward_.data(); }
  N pair_total() const { return pair_total_; }

  // After the last call of back. A number that double flushes is below 2^-1022 of a message that
  // sums to about 1, and each of them changes Z by that times the beta of its place; exposure_ is
  // the sum of all betas. So either all that was flushed is below 2^-60 of Z, or this is false.
  bool certified() const {
    if (std::isinf(Number<N>::kLowestExponent)) return true;
    return exposure_ * (4.0 * double(states_) + 8.0) < std::ldexp(1.0, 1022 - 60);
  }

 private:
  double load_step(int64_t t) {
    if (loaded_ != s_.trans_into(t)) {
      loaded_ = s_.trans_into(t);
      loaded_high_ = hmm_load(loaded_, trans_.size(), trans_.data(), &lowest_trans_);
    }
    return loaded_high_ + hmm_load(s_.emit(t), states_, emit_.data(), &lowest_emit_);
  }

  void settle(int64_t t) {
    N* a = alpha_.data() + size_t(t) * states_;
    N sum{};
    for (size_t i = 0; i < states_; ++i) sum = sum + a[i];
    const double n = Number<N>::exponent(sum);
    for (size_t i = 0; i < states_; ++i) {
      a[i] = Number<N>::scaled(a[i], -n);
      if (!Number<N>::is_zero(a[i])) {
        lowest_alpha_ = std::min(lowest_alpha_, Number<N>::exponent(a[i]));
      }
    }
    exponent_[size_t(t)] = n;
    log_z_ += n * kLn2;
  }

  N normalise(int64_t t) {
    N total{};
    for (size_t i = 0; i < states_; ++i) total = total + alpha(t)[i] * beta_[i];
    for (size_t i = 0; i < states_; ++i) {
      beta_[i] = divide(beta_[i], total);
      // Seen from alpha before it was scaled.
      exposure_ += as_double(Number<N>::scaled(beta_[i], -exponent_[size_t(t)]));
    }
    return total;
  }

  static double divide(double a, double b) { return a / b; }
  static ExtendedRange divide(ExtendedRange a, ExtendedRange b) {
    if (a.mantissa == 0.0) return a;
    const double m = a.mantissa / b.mantissa;
    return m < 1.0 ? ExtendedRange{2.0 * m, a.exponent - b.exponent - 1.0}
                   : ExtendedRange{m, a.exponent - b.exponent};
  }
  static double as_double(double x) { return x; }
  static double as_double(ExtendedRange) { return 0.0; }  // nothing is ever lost

  HmmSequence<T> s_;
  size_t states_;
  std::vector<N> emit_, final_, trans_, alpha_, beta_, onward_;
  std::vector<double> exponent_;  // alpha(t) was multiplied by 2^-exponent_[t]
  const T* loaded_ = nullptr;     // the matrix that trans_ holds
  double loaded_high_ = 0.0, log_z_ = 0.0, exposure_ = 0.0;
  double lowest_trans_ = 0.0, lowest_emit_ = 0.0, lowest_alpha_ = 0.0;
  N pair_total_{};
  bool impossible_ = false;
};

// Where the results of one sequence go; nullptr: not asked for.
template <typename T>
struct HmmSequenceOutputs {
  T* log_likelihood;
  T* gamma;
  T* xi;
  T* xi_sum;
};

// Results of one sequence of at least one step, up to its end.
void hmm_double_posteriors(const HmmSequence<float>&, const HmmSequenceOutputs<float>&);
void hmm_double_posteriors(const HmmSequence<double>&, const HmmSequenceOutputs<double>&);

}  // namespace oneshot::cpu
