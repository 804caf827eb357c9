// Gradient of the posteriors. log Z has a symmetric Hessian, so the vector-Jacobian product of its
// gradient is the derivative of the posteriors in the direction of the upstream gradients V:
//
//     d gamma_t(i) = gamma_t(i) (E[V | z_t = i] - E[V]),  and the same with pairs for xi,
//
// where V(z) adds up upstream[t, z_t] and upstream[t, z_t, z_{t+1}] along a path. E[V | z_t = i] is
// before_t(i), collected up to step t, plus after_t(i): conditional means, each by one recursion.
#include <algorithm>
#include <utility>
#include <vector>

#include "hmm/cpu/double_precision/forward_backward.h"
#include "hmm/cpu/hmm.h"

namespace oneshot::cpu {
namespace {

// Where the gradient of one input goes: `direct` is written (in the type of the input), or `sum`
// collects it over steps or sequences.
template <typename T>
struct Sink {
  T* direct = nullptr;
  double* sum = nullptr;
  void put(size_t i, double value) const {
    if (sum != nullptr) {
      sum[i] += value;
    } else if (direct != nullptr) {
      direct[i] = T(value);
    }
  }
};

template <typename T>
struct SequenceGradients {
  Sink<T> init, trans, emit, final;
  size_t trans_step;  // 0: all steps share one matrix
};

// Upstream gradients of one sequence.
template <typename T>
struct Direction {
  double scale = 0.0;  // of log_likelihood
  const T* gamma = nullptr;
  const T* xi = nullptr;
  const T* xi_sum = nullptr;
  size_t states = 0;

  double state(int64_t t, size_t i) const {
    return gamma == nullptr ? 0.0 : double(gamma[size_t(t) * states + i]);
  }
  // Of the pair ij into step t.
  double pair(int64_t t, size_t ij) const {
    double value = xi == nullptr ? 0.0 : double(xi[size_t(t - 1) * states * states + ij]);
    if (xi_sum != nullptr) value += double(xi_sum[ij]);
    return value;
  }
};

template <typename T>
void put_everywhere(const HmmSequence<T>& s, const SequenceGradients<T>& out, double value) {
  const auto states = size_t(s.states);
  for (size_t i = 0; i < states; ++i) out.init.put(i, value), out.final.put(i, value);
  for (size_t i = 0; i < size_t(s.length) * states; ++i) out.emit.put(i, value);
  for (int64_t t = 1; t < s.length; ++t) {
    for (size_t ij = 0; ij < states * states; ++ij) {
      out.trans.put(size_t(t - 1) * out.trans_step + ij, value);
    }
  }
}

// sum_n weight_n value_n / sum_n weight_n. Nothing passes through a weight of 0, whatever its
// value.
template <typename N>
class Mean {
 public:
  void add(N weight, double value) {
    if (Number<N>::is_zero(weight)) return;
    weights_.push_back(weight);
    values_.push_back(value);
    total_ = total_ + weight;
  }
  double take() {
    double mean = 0.0;
    for (size_t n = 0; n < values_.size(); ++n) {
      mean += Number<N>::ratio(weights_[n], total_) * values_[n];
    }
    weights_.clear();
    values_.clear();
    total_ = N{};
    return mean;
  }

 private:
  std::vector<N> weights_;
  std::vector<double> values_;
  N total_{};
};

template <>
class Mean<double> {
 public:
  void add(double weight, double value) {
    total_ += weight;
    sum_ += weight == 0.0 ? 0.0 : weight * value;
  }
  double take() {
    const double mean = total_ == 0.0 ? 0.0 : sum_ / total_;
    total_ = sum_ = 0.0;
    return mean;
  }

 private:
  double total_ = 0.0, sum_ = 0.0;
};

// Means of V over the paths that end in each state of step t, from those of step t - 1.
template <typename N, typename T>
void mean_before(const DoubleSweep<N, T>& sweep, const Direction<T>& v, int64_t t,
                 std::vector<Mean<N>>& means, double* before) {
  const size_t states = v.states;
  const double* from = before + size_t(t - 1) * states;
  double* to = before + size_t(t) * states;
  for (size_t i = 0; i < states; ++i) {
    const N alpha = sweep.alpha(t - 1)[i];
    for (size_t j = 0; j < states; ++j) {
      const size_t ij = i * states + j;
      means[j].add(alpha * sweep.trans()[ij], from[i] + v.pair(t, ij));
    }
  }
  for (size_t j = 0; j < states; ++j) to[j] = v.state(t, j) + means[j].take();
}

// False if N has lost weight that may matter; then nothing was written.
template <typename N, typename T>
bool gradients(const HmmSequence<T>& s, const Direction<T>& v, const SequenceGradients<T>& out) {
  const auto states = size_t(s.states);
  DoubleSweep<N, T> sweep(s);
  std::vector<double> before(size_t(s.length) * states);
  for (size_t i = 0; i < states; ++i) before[i] = v.state(0, i);
  std::vector<Mean<N>> means(states);
  sweep.forward([&](int64_t t) {
    if (t > 0) mean_before(sweep, v, t, means, before.data());
  });
  if (sweep.impossible()) {
    if (!std::isinf(Number<N>::kLowestExponent) && !sweep.lossless()) return false;
    put_everywhere(s, out, 0.0);
    return true;
  }
  if (!sweep.lossless()) {  // before anything is added to a sum
    sweep.start_back();
    for (int64_t t = s.length - 1; t > 0; --t) sweep.back(t);
    if (!sweep.certified()) return false;
  }
  std::vector<double> after(states), behind(states), gamma(states), both(states);
  std::vector<double> pair(states * states), value(states * states);

  const auto put_states = [&](int64_t t) {
    double mean = 0.0;
    for (size_t i = 0; i < states; ++i) {
      gamma[i] = Number<N>::ratio(sweep.alpha(t)[i] * sweep.beta()[i], Number<N>::from_log(0.0));
      both[i] = before[size_t(t) * states + i] + after[i];
      if (gamma[i] != 0.0) mean += gamma[i] * both[i];
    }
    for (size_t i = 0; i < states; ++i) {
      const double grad = gamma[i] == 0.0 ? 0.0 : gamma[i] * (both[i] - mean + v.scale);
      out.emit.put(size_t(t) * states + i, grad);
      if (t == 0) out.init.put(i, grad);
      if (t == s.length - 1) out.final.put(i, grad);
    }
  };

  sweep.start_back();
  put_states(s.length - 1);
  for (int64_t t = s.length - 1; t > 0; --t) {
    sweep.back(t);
    double mean = 0.0;
    Mean<N> onward_mean;
    for (size_t i = 0; i < states; ++i) {
      const N alpha = sweep.alpha(t - 1)[i];
      for (size_t j = 0; j < states; ++j) {
        const size_t ij = i * states + j;
        const N onward = sweep.onward()[ij];
        const double ahead = v.pair(t, ij) + v.state(t, j) + after[j];
        onward_mean.add(onward, ahead);
        pair[ij] = Number<N>::ratio(alpha * onward, sweep.pair_total());
        value[ij] = before[size_t(t - 1) * states + i] + ahead;
        if (pair[ij] != 0.0) mean += pair[ij] * value[ij];
      }
      behind[i] = onward_mean.take();
    }
    for (size_t ij = 0; ij < pair.size(); ++ij) {
      out.trans.put(size_t(t - 1) * out.trans_step + ij,
                    pair[ij] == 0.0 ? 0.0 : pair[ij] * (value[ij] - mean + v.scale));
    }
    std::swap(after, behind);
    put_states(t - 1);
  }
  return true;
}

template <typename T>
Direction<T> direction(const HmmInput<T>& in, const HmmUpstream<T>& up, int64_t b) {
  const int64_t row = in.states, square = row * row;
  Direction<T> v;
  v.states = size_t(row);
  if (up.log_likelihood != nullptr) v.scale = double(up.log_likelihood[b]);
  if (up.gamma != nullptr) v.gamma = up.gamma + b * in.steps * row;
  if (up.xi != nullptr) v.xi = up.xi + b * (in.steps - 1) * square;
  if (up.xi_sum != nullptr) v.xi_sum = up.xi_sum + b * square;
  return v;
}

// Sums over sequences run in blocks that depend on the shapes alone, so that the result does not
// depend on the threads; each block has buffers of its own.
template <typename T>
void backward(const HmmInput<T>& in, const HmmUpstream<T>& up, const HmmGradients<T>& out,
              const Workers& workers) {
  const auto row = size_t(in.states), square = row * row;
  const size_t matrices = out.trans_homogeneous ? 1 : size_t(in.steps - 1);
  const bool shared = out.init_shared || out.trans_shared || (out.final_shared && out.final);
  const size_t trans_sum = out.trans_shared ? matrices * square : 0;
  const auto fit = int64_t((size_t{1} << 24) / (trans_sum + 1));  // 128 MiB of blocks
  const int64_t blocks = shared ? std::min(in.batch, std::clamp<int64_t>(fit, 1, 16)) : in.batch;
  struct Sums {
    std::vector<double> init, trans, final;
  };
  std::vector<Sums> sums(shared ? size_t(blocks) : 0);

  workers.run(blocks, [&](int64_t block) {
    std::vector<double> steps_sum;  // of a matrix of one sequence for all steps
    if (shared)
      sums[size_t(block)] = {std::vector<double>(row), std::vector<double>(trans_sum),
                             std::vector<double>(row)};
    for (int64_t b = in.batch * block / blocks; b < in.batch * (block + 1) / blocks; ++b) {
      const int64_t length = in.length(b);
      SequenceGradients<T> to{};
      to.trans_step = out.trans_homogeneous ? 0 : square;
      to.emit.direct = out.emit + size_t(b * in.steps) * row;
      std::fill(to.emit.direct + size_t(length) * row, to.emit.direct + size_t(in.steps) * row,
                T(0));
      if (out.init_shared) {
        to.init.sum = sums[size_t(block)].init.data();
      } else {
        to.init.direct = out.init + size_t(b) * row;
        if (length == 0) std::fill_n(to.init.direct, row, T(0));
      }
      if (out.final != nullptr && out.final_shared) {
        to.final.sum = sums[size_t(block)].final.data();
      } else if (out.final != nullptr) {
        to.final.direct = out.final + size_t(b) * row;
        if (length == 0) std::fill_n(to.final.direct, row, T(0));
      }
      T* own_trans = out.trans + (out.trans_shared ? 0 : size_t(b) * matrices * square);
      if (out.trans_shared) {
        to.trans.sum = sums[size_t(block)].trans.data();
      } else if (out.trans_homogeneous) {
        steps_sum.assign(square, 0.0);
        to.trans.sum = steps_sum.data();
      } else {
        to.trans.direct = own_trans;
        const size_t used = size_t(std::max<int64_t>(length - 1, 0)) * square;
        std::fill(own_trans + used, own_trans + matrices * square, T(0));
      }
      if (length == 0) {
        if (out.trans_homogeneous && !out.trans_shared) std::fill_n(own_trans, square, T(0));
        continue;
      }
      const HmmSequence<T> s(in, b);
      const Direction<T> v = direction(in, up, b);
      if (hmm_is_bad(s)) {
        put_everywhere(s, to, std::numeric_limits<double>::quiet_NaN());
      } else if (!gradients<double>(s, v, to)) {
        gradients<ExtendedRange>(s, v, to);
      }
      if (out.trans_homogeneous && !out.trans_shared) {
        for (size_t ij = 0; ij < square; ++ij) own_trans[ij] = T(steps_sum[ij]);
      }
    }
  });

  const auto total = [&](std::vector<double> Sums::* part, T* to, size_t count) {
    for (size_t i = 0; i < count; ++i) {
      double sum = 0.0;
      for (const auto& block : sums) sum += (block.*part)[i];
      to[i] = T(sum);
    }
  };
  if (out.init_shared) total(&Sums::init, out.init, row);
  if (out.trans_shared) total(&Sums::trans, out.trans, trans_sum);
  if (out.final != nullptr && out.final_shared) total(&Sums::final, out.final, row);
}

}  // namespace

void hmm_posteriors_backward(const HmmInput<float>& in, const HmmUpstream<float>& up,
                             const HmmGradients<float>& out, const Workers& workers) {
  backward(in, up, out, workers);
}

void hmm_posteriors_backward(const HmmInput<double>& in, const HmmUpstream<double>& up,
                             const HmmGradients<double>& out, const Workers& workers) {
  backward(in, up, out, workers);
}

}  // namespace oneshot::cpu
