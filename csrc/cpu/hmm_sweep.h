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
  float* message;         // [pitch] the current one, zeros behind the states
  float* pair_sums;       // [K, pitch] or nullptr: sums of pairs of the last steps,
  double* xi_sum;         // [K, K] and of all steps before them
  double shift = 0.0;     // sum of what was subtracted from the potentials
  float exposure = 0.0f;  // sum of the normalised messages and of what they were computed from
};

// Exponentials of the matrices on one side of the middle, where there is no xi for them: a ring, in
// which the first chain to pass leaves those nearest to the middle for the other one.
struct HmmRing {
  float* matrices;
  int64_t slots;  // a power of two
};

struct HmmSweep {
  HmmSequence<float> sequence;
  int64_t middle;
  int64_t pitch;  // K rounded up to whole vectors
  float* gamma;   // [length, K]; first the messages: forward up to the middle, backward behind it
  float* xi;      // [length - 1, K, K] or nullptr; first the exponentials of the matrices
  float* emit;    // [length, pitch] exp(emission - largest of the step)
  float* scale;   // [length]; scale[t], a power of two, times the message that crosses matrix t
  HmmRing front, back;
  HmmChain forward, backward;

  explicit HmmSweep(const HmmSequence<float>& s) : sequence(s) {}
};

// The parts of a sweep with a matrix for every step: to the middle, then on from it (pairs: 0 none,
// 1 written to xi, 2 added up).
struct HmmTokenKernels {
  int64_t width;        // floats of a vector
  int64_t slot_floats;  // of a ring
  int64_t least_slots;
  void (*forward_first)(HmmSweep&);
  void (*backward_first)(HmmSweep&);
  void (*forward_second[3])(HmmSweep&);
  void (*backward_second[3])(HmmSweep&);
};

// All nullptr if there are none for so many states.
HmmTokenKernels hmm_token_kernels(int64_t states);

}  // namespace oneshot::cpu
