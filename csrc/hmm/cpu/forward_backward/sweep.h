// What the float32 kernels know of one sequence. Two chains of messages run over it: forward from
// its first step and backward from its last. They meet at `middle`, where log Z is known; then each
// goes on over the steps that the other has prepared, and turns messages into posteriors. The two
// chains touch different memory, so they may run on two threads; nothing else about them depends on
// the threads.
#pragma once

#include <cstdint>

#include "hmm/cpu/sequence.h"

namespace oneshot::cpu {

// One direction. Each has its own, so that chains can run side by side.
struct HmmChain {
  float* message;              // [pitch] the current one, zeros behind the states
  float* pair_sums = nullptr;  // [K, pitch]: sums of pairs of the last steps,
  double* xi_sum = nullptr;    // [K, K] and of all steps before them
  double shift = 0.0;          // sum of what was subtracted from the potentials
  float exposure = 0.0f;       // sum of the normalised messages and of what they come from

  // Of the kernels that keep messages in memory.
  float* product = nullptr;  // [pitch]
  float* other = nullptr;    // [pitch]
  float* weight = nullptr;   // [pitch]
  float* exposed = nullptr;  // a vector, whose sum becomes `exposure`
  float factor = 1.0f;       // the next scale; then 1 / sum of the last posterior
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
  float* homogeneous = nullptr;  // exponentials [K, K] of the one matrix of all steps, or nullptr
  float* xi;     // [length - 1, K, K] or nullptr; first the exponentials of the matrices
  float* emit;   // [length, pitch] exp(emission - largest of the step)
  float* scale;  // [length]; scale[t], a power of two, times the message that crosses matrix t
  float* source = nullptr;  // [length, pitch], if pairs are made at the end: what leads to a state;
                            // emit then holds what follows one
  float* high = nullptr;    // [length] the largest potential of each matrix, if they are made twice
  bool far = false;         // the matrices come from memory, or from far away in the caches
  HmmRing front, back;
  HmmChain forward, backward;

  explicit HmmSweep(const HmmSequence<float>& s) : sequence(s) {}
};

// The parts of a sweep with a matrix for every step: to the middle, then on from it (pairs: 0 none,
// 1 written to xi, 2 added up).
struct HmmPerStepKernels {
  int64_t width;        // floats of a vector
  int64_t slot_floats;  // of a ring
  int64_t least_slots;
  bool recomputes;  // what it reads: HmmSweep::high instead of a ring
  void (*forward_to_middle)(HmmSweep&);
  void (*backward_to_middle)(HmmSweep&);
  void (*forward_from_middle[3])(HmmSweep&);
  void (*backward_from_middle[3])(HmmSweep&);
};

HmmPerStepKernels hmm_per_step_kernels(int64_t states);
HmmPerStepKernels hmm_many_states_kernels(int64_t states);  // for any number of states

// Sequences that share one transition matrix, the longest first: their chains go side by side, so
// that a step is a product of two matrices. The sum of a number runs over the states in order,
// whatever goes beside it.
struct HmmGroup {
  HmmSweep* sweeps;
  int64_t count, states, pitch;
  const float* matrix;    // exponentials [K, pitch], zeros behind the states,
  const float* forward;   // in panels of `panel` vectors of columns
  const float* backward;  // and those of the transposed matrix
  int64_t panel;
  const float** rows;  // room for 2 x count
  float** results;     // pointers
};

enum HmmDirection { kHmmForward = 1, kHmmBackward = 2 };

struct HmmHomogeneousKernels {
  int64_t width;                                   // floats of a vector
  int64_t (*panel)(int64_t rows);                  // vectors of a panel for so many sequences
  void (*to_middle)(HmmGroup&, int directions);    // to the middle
  void (*from_middle)(HmmGroup&, int directions);  // on from it; fills source and emit if there
  void (*pairs_sum)(const HmmGroup&, const HmmSweep&, float* scratch, float* xi_sum);
  void (*pairs)(const HmmGroup&, const HmmSweep&);  // writes xi
};

// Steps whose pairs are added up in float before they go to double.
inline constexpr int64_t kHmmSumSteps = 256;

HmmHomogeneousKernels hmm_homogeneous_kernels(int64_t states);

}  // namespace oneshot::cpu
