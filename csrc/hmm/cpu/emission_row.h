// What one source says about one token, in double: exact for whatever the inputs hold.
#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>
#include <vector>

#include "hmm/contract.h"

namespace oneshot::cpu {

template <typename T>
class EmissionRow {
 public:
  explicit EmissionRow(const EmissionInput<T>&);

  // False where the source abstains.
  bool observe(int64_t token, int64_t source);

  // log sum_j emission[state, j] x[j]; what follows is about the state asked for last.
  double log_likelihood(int64_t state);
  bool ruled_out() const { return value_ == -std::numeric_limits<double>::infinity(); }

  // Its derivatives, unless the state is ruled out.
  double by_log_emission(size_t label) const;
  double by_observation(size_t label) const;

 private:
  const EmissionInput<T>& in_;
  size_t labels_;
  const T* rows_ = nullptr;
  std::vector<double> log_x_, log_e_, terms_;
  double value_ = 0.0;
};

extern template class EmissionRow<float>;
extern template class EmissionRow<double>;

}  // namespace oneshot::cpu
