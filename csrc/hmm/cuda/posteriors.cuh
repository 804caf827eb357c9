// From messages to posteriors or gradients: launchers that hmm.cu puts together.
#pragma once

#include "hmm/cuda/chain.cuh"

namespace oneshot::cuda {

// Gamma, or with m.before the gradient of the emissions (out may be nullptr for neither). With
// `pairs` it turns m.beta into what hmm_pairs reads, with m.before it writes mean [batch, steps].
template <typename T>
cudaError_t hmm_states(const HmmInput<T>&, const HmmMessages& m, const T* log_likelihood,
                       const T* grad_log_likelihood, T* out, double* mean, bool pairs,
                       cudaStream_t);

// Summed over the batch if `shared`, over steps if `constant`; then `parts` is workspace.
template <typename T>
struct HmmPairs {
  T* out = nullptr;
  bool shared = false, constant = false;
  double* parts = nullptr;
};
// How many doubles that is.
template <typename T>
int64_t hmm_pair_parts(const HmmInput<T>&);

// xi, or with m.before the gradient of the transitions, after hmm_states.
template <typename T>
cudaError_t hmm_pairs(const HmmInput<T>&, const HmmMessages& m, const HmmUpstream<T>&,
                      const T* log_likelihood, const double* mean, const HmmPairs<T>&,
                      cudaStream_t);

// out[row, :] = sum over n of parts[row, n, :], n < count.
template <typename T>
cudaError_t sum_parts(const double* parts, int64_t rows, int64_t count, int64_t width, T* out,
                      cudaStream_t);

// Gradient of log_init, or of log_final (`last`), from that of the emissions.
template <typename T>
cudaError_t hmm_boundary(const HmmInput<T>&, const T* by_emission, bool last, bool shared, T* out,
                         cudaStream_t);

}  // namespace oneshot::cuda
