// Evidence of several label sources, combined into the emissions of one chain.
#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "cpu/hmm.h"

namespace oneshot::cpu {

int64_t emission_bad_id(const int64_t* ids, int64_t count, int64_t labels) {
  for (int64_t i = 0; ids != nullptr && i < count; ++i) {
    if (ids[i] < -1 || ids[i] >= labels) return i;
  }
  return -1;
}

namespace {

constexpr double kNever = -std::numeric_limits<double>::infinity();

double log_sum(const double* x, size_t count) {
  double high = kNever;
  for (size_t j = 0; j < count; ++j) high = x[j] > high || x[j] != x[j] ? x[j] : high;
  if (std::isinf(high)) return high;
  double sum = 0.0;
  for (size_t j = 0; j < count; ++j) sum += std::exp(x[j] - high);
  return high + std::log(sum);
}

// One source at one token.
template <typename T>
class Source {
 public:
  explicit Source(const EmissionInput<T>& in)
      : in_(in), labels_(size_t(in.labels)), log_x_(labels_), log_e_(labels_), terms_(labels_) {}

  // False where the source abstains.
  bool observe(int64_t token, int64_t source) {
    const int64_t place = token * in_.sources + source;
    const int64_t matrix = in_.constant ? source : place;
    rows_ = in_.log_emissions + matrix * in_.states * in_.labels;
    bool voice = false;
    for (size_t j = 0; j < labels_; ++j) {
      const double x = in_.soft != nullptr ? double(in_.soft[size_t(place) * labels_ + j])
                                           : double(in_.ids[place] == int64_t(j));
      log_x_[j] = std::log(x);
      voice = voice || x != 0.0;
    }
    return voice;
  }

  // log sum_j emission[i, j] x[j].
  double log_likelihood(int64_t state) {
    const T* row = rows_ + state * in_.labels;
    for (size_t j = 0; j < labels_; ++j) log_e_[j] = double(row[j]);
    if (in_.normalize) {
      double norm = log_sum(log_e_.data(), labels_);
      if (std::isinf(norm)) norm = std::numeric_limits<double>::quiet_NaN();
      for (size_t j = 0; j < labels_; ++j) log_e_[j] -= norm;
    }
    for (size_t j = 0; j < labels_; ++j) {
      terms_[j] = log_x_[j] == kNever ? kNever : log_e_[j] + log_x_[j];
    }
    return log_sum(terms_.data(), labels_);
  }

  // Of the state asked for last: log emission[i, j] (normalised if that is asked for), and with
  // the observation.
  const std::vector<double>& log_emission() const { return log_e_; }
  const std::vector<double>& terms() const { return terms_; }

 private:
  const EmissionInput<T>& in_;
  size_t labels_;
  const T* rows_ = nullptr;
  std::vector<double> log_x_, log_e_, terms_;
};

// Tokens a block: sums over tokens add up within a block, then over blocks, so they do not depend
// on the threads.
int64_t blocks_of(int64_t tokens) { return std::min<int64_t>(tokens, 64); }

template <typename T>
void forward(const EmissionInput<T>& in, T* out, const Workers& workers) {
  const int64_t blocks = blocks_of(in.tokens);
  workers.run(blocks, [&](int64_t block) {
    Source<T> source(in);
    std::vector<double> sum(static_cast<size_t>(in.states));
    for (int64_t n = in.tokens * block / blocks; n < in.tokens * (block + 1) / blocks; ++n) {
      std::fill(sum.begin(), sum.end(), 0.0);
      for (int64_t s = 0; s < in.sources; ++s) {
        const double weight = in.weights == nullptr ? 1.0 : double(in.weights[s]);
        if (weight == 0.0 || !source.observe(n, s)) continue;
        for (int64_t i = 0; i < in.states; ++i) sum[size_t(i)] += weight * source.log_likelihood(i);
      }
      for (int64_t i = 0; i < in.states; ++i) out[n * in.states + i] = T(sum[size_t(i)]);
    }
  });
}

template <typename T>
void backward(const EmissionInput<T>& in, const EmissionGradients<T>& out, const Workers& workers) {
  const int64_t square = in.states * in.labels, blocks = blocks_of(in.tokens);
  struct Sums {
    std::vector<double> log_emissions, weights;
  };
  const auto matrices = size_t(in.constant ? in.sources * square : 0);
  const auto sources = size_t(in.sources), labels = size_t(in.labels);
  std::vector<Sums> sums(static_cast<size_t>(blocks));
  workers.run(blocks, [&](int64_t block) {
    Sums& own = sums[size_t(block)];
    own = {std::vector<double>(matrices), std::vector<double>(sources)};
    Source<T> source(in);
    std::vector<double> by_label(labels);
    for (int64_t n = in.tokens * block / blocks; n < in.tokens * (block + 1) / blocks; ++n) {
      const T* upstream = out.upstream + n * in.states;
      for (int64_t s = 0; s < in.sources; ++s) {
        const int64_t place = n * in.sources + s;
        const double weight = in.weights == nullptr ? 1.0 : double(in.weights[s]);
        const bool voice = source.observe(n, s);
        std::fill(by_label.begin(), by_label.end(), 0.0);
        for (int64_t i = 0; i < in.states; ++i) {
          T* to = in.constant ? nullptr : out.log_emissions + place * square + i * in.labels;
          if (to != nullptr) std::fill_n(to, labels, T(0));
          const auto up = double(upstream[i]);
          if (up == 0.0 || !voice) continue;
          const double log_likelihood = source.log_likelihood(i);
          if (log_likelihood == kNever) continue;
          own.weights[size_t(s)] += up * log_likelihood;
          const double scale = up * weight;
          if (scale == 0.0) continue;
          double* total =
              in.constant ? own.log_emissions.data() + s * square + i * in.labels : nullptr;
          for (size_t j = 0; j < labels; ++j) {
            const double log_e = source.log_emission()[j];
            double share = std::exp(source.terms()[j] - log_likelihood);
            if (in.normalize) share -= std::exp(log_e);
            if (total != nullptr) {
              total[j] += scale * share;
            } else {
              to[j] = T(scale * share);
            }
            if (out.soft != nullptr) by_label[j] += scale * std::exp(log_e - log_likelihood);
          }
        }
        for (size_t j = 0; j < labels && out.soft != nullptr; ++j) {
          out.soft[size_t(place) * labels + j] = T(by_label[j]);
        }
      }
    }
  });
  const auto add_up = [&](std::vector<double> Sums::* part, T* to, size_t count) {
    for (size_t i = 0; i < count; ++i) {
      double sum = 0.0;
      for (const auto& block : sums) sum += (block.*part)[i];
      to[i] = T(sum);
    }
  };
  if (in.constant) add_up(&Sums::log_emissions, out.log_emissions, matrices);
  if (out.weights != nullptr) add_up(&Sums::weights, out.weights, sources);
}

}  // namespace

void combine_emissions(const EmissionInput<float>& in, float* out, const Workers& workers) {
  forward(in, out, workers);
}

void combine_emissions(const EmissionInput<double>& in, double* out, const Workers& workers) {
  forward(in, out, workers);
}

void combine_emissions_backward(const EmissionInput<float>& in, const EmissionGradients<float>& out,
                                const Workers& workers) {
  backward(in, out, workers);
}

void combine_emissions_backward(const EmissionInput<double>& in,
                                const EmissionGradients<double>& out, const Workers& workers) {
  backward(in, out, workers);
}

}  // namespace oneshot::cpu
