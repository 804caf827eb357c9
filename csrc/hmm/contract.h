// Hidden Markov models and linear-chain CRFs: what the kernels of every device take, on raw
// pointers.
//
// The score of a path z of n steps is init[z_0] + sum_t emit[t, z_t] + sum_t trans[t, z_t, z_{t+1}]
// + final[z_{n-1}], in nats. -inf is legal everywhere. A NaN or +inf in a used place makes the
// results of its sequence NaN; what stands behind the end of a sequence is never read. Results of a
// sequence depend on its own inputs alone: not on the batch, its padding or the threads.
#pragma once

#include <cstdint>

namespace oneshot {

// Strides count elements; 0 repeats (broadcasting). K states of a row, and the K x K of a matrix
// (source state first), are adjacent.
template <typename T>
struct HmmInput {
  const T* log_init = nullptr;
  const T* log_trans = nullptr;      // matrix t leads from step t to step t + 1
  const T* log_emit = nullptr;       // [batch, steps, states]
  const T* log_final = nullptr;      // or nullptr: 0
  const int64_t* lengths = nullptr;  // or nullptr: `steps`; each in [0, steps]
  int64_t batch = 0, steps = 0, states = 0;
  int64_t init_stride = 0, final_stride = 0;
  int64_t trans_batch_stride = 0, trans_step_stride = 0;
  int64_t emit_batch_stride = 0, emit_step_stride = 0;
  bool homogeneous = false;  // one matrix for all steps of a sequence (with steps > 2)

  int64_t length(int64_t b) const { return lengths == nullptr ? steps : lengths[b]; }
};

// The first sequence whose length lies outside [0, steps], or -1.
inline int64_t hmm_bad_length(const int64_t* lengths, int64_t batch, int64_t steps) {
  for (int64_t b = 0; lengths != nullptr && b < batch; ++b) {
    if (lengths[b] < 0 || lengths[b] > steps) return b;
  }
  return -1;
}

// Outputs are dense; nullptr: not asked for. 0 behind the end of a sequence, and everywhere in an
// impossible one (log_likelihood -inf).
template <typename T>
struct HmmPosteriors {
  T* log_likelihood = nullptr;  // [batch]
  T* gamma = nullptr;           // [batch, steps, states]
  T* xi = nullptr;              // [batch, steps - 1, states, states]
  T* xi_sum = nullptr;          // [batch, states, states]
};

// Gradient of the posteriors: upstream gradients are dense, nullptr: 0.
template <typename T>
struct HmmUpstream {
  const T* log_likelihood = nullptr;
  const T* gamma = nullptr;
  const T* xi = nullptr;
  const T* xi_sum = nullptr;
};

// Dense, in the shapes of the inputs: summed over the batch where the input has one row or matrix
// for all of it, over steps where it has one for all of them.
template <typename T>
struct HmmGradients {
  T* init = nullptr;
  T* trans = nullptr;
  T* emit = nullptr;
  T* final = nullptr;  // nullptr without log_final
  bool init_shared = false, final_shared = false;
  bool trans_shared = false, trans_homogeneous = false;  // over the batch, over steps
};

// Paths drawn from the posterior, [samples, batch, steps], -1 as above. Philox4x32-10 with the key
// seed and the counter (id, sample, step).
struct HmmSampling {
  const int64_t* sequence_ids = nullptr;  // [batch], or nullptr: 0, 1, ...
  int64_t samples = 1;
  uint64_t seed = 0;
};

// ---- evidence of several label sources
// out[n, i] = sum_s w_s log sum_j exp(log_emissions[n, s, i, j]) x[n, s, j], tokens n = [B, T].

template <typename T>
struct EmissionInput {
  const T* log_emissions = nullptr;  // [tokens, sources, states, labels], or [sources, ...]
  bool constant = false;             // the latter
  const T* soft = nullptr;           // x [tokens, sources, labels]; or nullptr:
  const int64_t* ids = nullptr;      // [tokens, sources], label ids, -1 abstains
  const T* weights = nullptr;        // [sources], or nullptr: 1
  bool normalize = false;            // log_emissions are logits over labels
  int64_t tokens = 0, sources = 0, states = 0, labels = 0;
};

// The place [token * sources + source] of the first id outside [-1, labels), or -1.
inline int64_t emission_bad_id(const int64_t* ids, int64_t count, int64_t labels) {
  for (int64_t i = 0; ids != nullptr && i < count; ++i) {
    if (ids[i] < -1 || ids[i] >= labels) return i;
  }
  return -1;
}

template <typename T>
struct EmissionGradients {
  const T* upstream = nullptr;  // [tokens, states]
  T* log_emissions = nullptr;   // in its shape
  T* soft = nullptr;            // nullptr for ids
  T* weights = nullptr;         // nullptr without weights
};

}  // namespace oneshot
