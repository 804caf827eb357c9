#include "hmm/cpu/emission_row.h"

#include <cmath>

namespace oneshot::cpu {
namespace {

constexpr double kNever = -std::numeric_limits<double>::infinity();

double log_sum(const std::vector<double>& x) {
  double high = kNever;
  for (const double value : x) high = value > high || value != value ? value : high;
  if (std::isinf(high)) return high;
  double sum = 0.0;
  for (const double value : x) sum += std::exp(value - high);
  return high + std::log(sum);
}

}  // namespace

template <typename T>
EmissionRow<T>::EmissionRow(const EmissionInput<T>& in)
    : in_(in), labels_(size_t(in.labels)), log_x_(labels_), log_e_(labels_), terms_(labels_) {}

template <typename T>
bool EmissionRow<T>::observe(int64_t token, int64_t source) {
  const int64_t place = token * in_.sources + source;
  rows_ = in_.log_emissions + (in_.constant ? source : place) * in_.states * in_.labels;
  bool voice = false;
  for (size_t j = 0; j < labels_; ++j) {
    const double x = in_.soft != nullptr ? double(in_.soft[size_t(place) * labels_ + j])
                                         : double(in_.ids[place] == int64_t(j));
    log_x_[j] = std::log(x);
    voice = voice || x != 0.0;
  }
  return voice;
}

template <typename T>
double EmissionRow<T>::log_likelihood(int64_t state) {
  const T* row = rows_ + state * in_.labels;
  for (size_t j = 0; j < labels_; ++j) log_e_[j] = double(row[j]);
  if (in_.normalize) {
    double norm = log_sum(log_e_);
    if (std::isinf(norm)) norm = std::numeric_limits<double>::quiet_NaN();
    for (double& x : log_e_) x -= norm;
  }
  for (size_t j = 0; j < labels_; ++j) {
    terms_[j] = log_x_[j] == kNever ? kNever : log_e_[j] + log_x_[j];
  }
  return value_ = log_sum(terms_);
}

template <typename T>
double EmissionRow<T>::by_log_emission(size_t label) const {
  const double share = std::exp(terms_[label] - value_);
  return in_.normalize ? share - std::exp(log_e_[label]) : share;
}

template <typename T>
double EmissionRow<T>::by_observation(size_t label) const {
  return std::exp(log_e_[label] - value_);
}

template class EmissionRow<float>;
template class EmissionRow<double>;

}  // namespace oneshot::cpu
