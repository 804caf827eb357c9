// What the float32 kernels know of one sequence. Two chains of messages run over it: forward from
// its first step and backward from its last. They meet at `middle`, where log Z is known; then each
// goes on over the steps that the other has prepared, and turns messages into posteriors. The two
// chains touch different memory, so they may run on two threads; nothing else about them depends on
// the threads.
#pragma once

#include <cstdint>

#include "cpu/hmm_sequence.h"

namespace oneshot::cpu {

// One direction. Each has its own, so that chains can run side by side.
struct HmmChain {
  float* message;   // [pitch] the current one, zeros behind the states
  float* matrices;  // room for a block of matrices, or for one of pairs
  double* xi_sum;   // [K, K] or nullptr; += pairs
  double shift = 0.0;  // sum of what was subtracted from the potentials
  float exposure = 0.0f;  // sum of the normalised messages and of what they were computed from
};

struct HmmSweep {
  HmmSequence<float> sequence;
  int64_t middle;
  int64_t pitch;  // K rounded up to whole vectors
  float* gamma;   // [length, K]; first the messages: forward up to the middle, backward behind it
  float* xi;      // [length - 1, K, K] or nullptr; first exp of the potentials, if `keep`
  float* emit;    // [length, pitch] exp(emission - largest of the step)
  float* scale;   // [length]; scale[t], a power of two, times the message that crosses matrix t
  bool keep;
  HmmChain forward, backward;

  explicit HmmSweep(const HmmSequence<float>& s) : sequence(s) {}
};

// The parts of a sweep with a matrix for every step: to the middle, then on from it; [1] also makes
// pairs, for xi and xi_sum of the chain.
struct HmmTokenKernels {
  int64_t width;         // floats of a vector
  int64_t block_floats;  // that `matrices` of a chain must hold
  void (*forward_first)(HmmSweep&);
  void (*backward_first)(HmmSweep&);
  void (*forward_second[2])(HmmSweep&);
  void (*backward_second[2])(HmmSweep&);
};

// All nullptr if there are none for so many states.
HmmTokenKernels hmm_token_kernels(int64_t states);

}  // namespace oneshot::cpu
