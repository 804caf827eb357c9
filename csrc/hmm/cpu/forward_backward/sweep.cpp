#include "hmm/cpu/forward_backward/sweep.h"

#include <cmath>
#include <cstring>

#include "hmm/cpu/forward_backward/tasks.h"

namespace oneshot::cpu {

int64_t hmm_sweep_floats(const HmmSweep& sweep, const HmmSequenceOutputs<float>& out) {
  const int64_t length = sweep.sequence.length, rows = length * sweep.pitch;
  const auto lines = HmmScratch::lines;
  return lines(rows) + lines(length) +
         (out.gamma == nullptr ? lines(length * sweep.sequence.states) : 0) +
         2 * (4 * lines(sweep.pitch) + 16);
}

void hmm_sweep_memory(HmmSweep& sweep, const HmmSequenceOutputs<float>& out, HmmScratch& scratch) {
  const int64_t length = sweep.sequence.length;
  sweep.emit = scratch.take(length * sweep.pitch);
  sweep.scale = scratch.take(length);
  sweep.gamma = out.gamma != nullptr ? out.gamma : scratch.take(length * sweep.sequence.states);
  for (HmmChain* chain : {&sweep.forward, &sweep.backward}) {
    chain->message = scratch.take(sweep.pitch);
    chain->product = scratch.take(sweep.pitch);
    chain->other = scratch.take(sweep.pitch);
    chain->weight = scratch.take(sweep.pitch);
    chain->exposed = scratch.take(16);
  }
}

double hmm_normalise_at_middle(HmmSweep& sweep) {
  const int64_t states = sweep.sequence.states;
  float* gamma = sweep.gamma + sweep.middle * states;
  float* forward = sweep.forward.message;
  float* backward = sweep.backward.message;
  double total = 0.0;
  for (int64_t i = 0; i < states; ++i) total += double(forward[i]) * double(backward[i]);
  const double inverse = 1.0 / total;
  for (int64_t i = 0; i < states; ++i) {
    gamma[i] = float(double(forward[i]) * double(backward[i]) * inverse);
    forward[i] = float(double(forward[i]) * inverse);
    backward[i] = float(double(backward[i]) * inverse);
  }
  int64_t exponents = 0;
  for (int64_t t = 1; t < sweep.sequence.length; ++t) {
    uint32_t bits;
    std::memcpy(&bits, sweep.scale + t, sizeof(bits));
    exponents += int64_t(bits >> 23) - 127;
  }
  return std::log(total) + sweep.forward.shift + sweep.backward.shift - kLn2 * double(exponents);
}

bool hmm_certified(const HmmSweep& sweep) {
  const double exposure = double(sweep.forward.exposure) + double(sweep.backward.exposure);
  return exposure * (4.0 * double(sweep.sequence.states) + 8.0) < std::ldexp(1.0, 126 - 24);
}

}  // namespace oneshot::cpu
