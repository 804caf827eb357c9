// Evidence of several label sources, combined into the emissions of one chain.
#include <algorithm>
#include <vector>

#include "hmm/cpu/emission_row.h"
#include "hmm/cpu/hmm.h"

#define ONESHOT_KERNEL_BODY "hmm/cpu/emissions.inc"
#include "cpu/foreach_isa.h"

namespace oneshot::cpu {

namespace {

// Sums over tokens add up within a block, then over blocks, so they do not depend on the threads.
int64_t blocks_of(int64_t tokens) { return std::min<int64_t>(tokens, 64); }

void exact_forward(const EmissionInput<double>& in, int64_t begin, int64_t end, double* out) {
  EmissionRow<double> row(in);
  std::vector<double> sum(static_cast<size_t>(in.states));
  for (int64_t n = begin; n < end; ++n) {
    std::fill(sum.begin(), sum.end(), 0.0);
    for (int64_t s = 0; s < in.sources; ++s) {
      const double weight = in.weights == nullptr ? 1.0 : in.weights[s];
      if (weight == 0.0 || !row.observe(n, s)) continue;
      for (int64_t i = 0; i < in.states; ++i) sum[size_t(i)] += weight * row.log_likelihood(i);
    }
    for (int64_t i = 0; i < in.states; ++i) out[n * in.states + i] = sum[size_t(i)];
  }
}

void exact_backward(const EmissionInput<double>& in, const EmissionGradients<double>& out,
                    int64_t begin, int64_t end, double* matrix_sums, double* weight_sums) {
  const int64_t square = in.states * in.labels;
  const auto labels = size_t(in.labels);
  EmissionRow<double> row(in);
  std::vector<double> by_label(labels);
  for (int64_t n = begin; n < end; ++n) {
    for (int64_t s = 0; s < in.sources; ++s) {
      const int64_t place = n * in.sources + s;
      const double weight = in.weights == nullptr ? 1.0 : in.weights[s];
      const bool voice = row.observe(n, s);
      std::fill(by_label.begin(), by_label.end(), 0.0);
      for (int64_t i = 0; i < in.states; ++i) {
        double* to = in.constant ? nullptr : out.log_emissions + place * square + i * in.labels;
        if (to != nullptr) std::fill_n(to, labels, 0.0);
        const double up = out.upstream[n * in.states + i];
        if (up == 0.0 || !voice) continue;
        const double log_likelihood = row.log_likelihood(i);
        if (row.ruled_out()) continue;
        weight_sums[s] += up * log_likelihood;
        const double scale = up * weight;
        if (scale == 0.0) continue;
        for (size_t j = 0; j < labels; ++j) {
          const double grad = scale * row.by_log_emission(j);
          if (to != nullptr) {
            to[j] = grad;
          } else {
            matrix_sums[size_t(s * square + i * in.labels) + j] += grad;
          }
          if (out.soft != nullptr) by_label[j] += scale * row.by_observation(j);
        }
      }
      for (size_t j = 0; j < labels && out.soft != nullptr; ++j) {
        out.soft[size_t(place) * labels + j] = by_label[j];
      }
    }
  }
}

int64_t scratch_floats(const EmissionInput<float>& in) {
  ONESHOT_DISPATCH_ISA(emissions::scratch_floats, in);
}

void forward_block(const EmissionInput<float>& in, int64_t begin, int64_t end, float* out) {
  EmissionRow<float> exact(in);
  std::vector<float> scratch(static_cast<size_t>(scratch_floats(in)));
  ONESHOT_DISPATCH_ISA(emissions::forward, in, begin, end, out, exact, scratch.data());
}
void forward_block(const EmissionInput<double>& in, int64_t begin, int64_t end, double* out) {
  exact_forward(in, begin, end, out);
}

void backward_block(const EmissionInput<float>& in, const EmissionGradients<float>& out,
                    int64_t begin, int64_t end, double* matrix_sums, double* weight_sums) {
  EmissionRow<float> exact(in);
  std::vector<float> scratch(static_cast<size_t>(scratch_floats(in)));
  ONESHOT_DISPATCH_ISA(emissions::backward, in, out, begin, end, matrix_sums, weight_sums, exact,
                       scratch.data());
}
void backward_block(const EmissionInput<double>& in, const EmissionGradients<double>& out,
                    int64_t begin, int64_t end, double* matrix_sums, double* weight_sums) {
  exact_backward(in, out, begin, end, matrix_sums, weight_sums);
}

template <typename T>
void forward(const EmissionInput<T>& in, T* out, const Workers& workers) {
  const int64_t blocks = blocks_of(in.tokens);
  workers.run(blocks, [&](int64_t block) {
    forward_block(in, in.tokens * block / blocks, in.tokens * (block + 1) / blocks, out);
  });
}

template <typename T>
void backward(const EmissionInput<T>& in, const EmissionGradients<T>& out, const Workers& workers) {
  const int64_t blocks = blocks_of(in.tokens);
  const auto matrices = size_t(in.constant ? in.sources * in.states * in.labels : 0);
  struct Sums {
    std::vector<double> matrices, weights;
  };
  std::vector<Sums> sums(static_cast<size_t>(blocks));
  workers.run(blocks, [&](int64_t block) {
    Sums& own = sums[size_t(block)];
    own = {std::vector<double>(matrices), std::vector<double>(size_t(in.sources))};
    backward_block(in, out, in.tokens * block / blocks, in.tokens * (block + 1) / blocks,
                   own.matrices.data(), own.weights.data());
  });
  const auto add_up = [&](std::vector<double> Sums::* part, T* to, size_t count) {
    for (size_t i = 0; i < count; ++i) {
      double sum = 0.0;
      for (const auto& block : sums) sum += (block.*part)[i];
      to[i] = T(sum);
    }
  };
  if (in.constant) add_up(&Sums::matrices, out.log_emissions, matrices);
  if (out.weights != nullptr) add_up(&Sums::weights, out.weights, size_t(in.sources));
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
