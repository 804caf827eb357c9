#include "cpu/hmm.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
#include <vector>

#include "cpu/hmm_exact.h"
#include "cpu/hmm_sweep.h"

namespace oneshot::cpu {

int64_t hmm_bad_length(const int64_t* lengths, int64_t batch, int64_t steps) {
  for (int64_t b = 0; lengths != nullptr && b < batch; ++b) {
    if (lengths[b] < 0 || lengths[b] > steps) return b;
  }
  return -1;
}

namespace {

// The outputs of sequence b, all zero behind its end.
template <typename T>
HmmSequenceOutputs<T> outputs_of(const HmmInput<T>& in, const HmmPosteriors<T>& out, int64_t b) {
  const int64_t row = in.states, square = in.states * in.states, length = in.length(b);
  HmmSequenceOutputs<T> o{out.log_likelihood + b, nullptr, nullptr, nullptr};
  if (out.gamma != nullptr) {
    o.gamma = out.gamma + b * in.steps * row;
    std::fill(o.gamma + length * row, o.gamma + in.steps * row, T(0));
  }
  if (out.xi != nullptr) {
    const int64_t pairs = std::max<int64_t>(length - 1, 0);
    o.xi = out.xi + b * (in.steps - 1) * square;
    std::fill(o.xi + pairs * square, o.xi + (in.steps - 1) * square, T(0));
  }
  if (out.xi_sum != nullptr) o.xi_sum = out.xi_sum + b * square;
  if (length == 0) {
    *o.log_likelihood = T(0);
    if (o.xi_sum != nullptr) std::fill_n(o.xi_sum, square, T(0));
  }
  return o;
}

// Fresh memory in whole cache lines, handed out piece by piece.
class Scratch {
 public:
  explicit Scratch(int64_t floats)
      : memory_(static_cast<float*>(std::aligned_alloc(64, size_t(floats) * sizeof(float)))),
        next_(memory_.get()) {
    if (memory_ == nullptr) throw std::bad_alloc();
  }
  static int64_t whole_lines(int64_t floats) { return (floats + 15) / 16 * 16; }
  float* take(int64_t floats) {
    float* piece = next_;
    next_ += whole_lines(floats);
    return piece;
  }

 private:
  struct Free {
    void operator()(float* p) const { std::free(p); }
  };
  std::unique_ptr<float, Free> memory_;
  float* next_;
};

// Where the chains have met: log Z, and messages scaled so that sum forward backward = 1.
double meet(HmmSweep& sweep) {
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

// Every number that float32 flushed (below 2^-126 of a message that sums to about 1) changes Z by
// that times the message of the other chain at its place. So either all that was lost is below
// 2^-24 of Z, or a weight may be missing, and the sequence is done again with wider numbers.
bool certified(const HmmSweep& sweep) {
  const double exposure = double(sweep.forward.exposure) + double(sweep.backward.exposure);
  return exposure * (4.0 * double(sweep.sequence.states) + 8.0) < std::ldexp(1.0, 126 - 24);
}

constexpr int64_t kRingFloats = 48 * 1024;

void token_posteriors(const HmmSequence<float>& s, const HmmTokenKernels& kernels,
                      const HmmSequenceOutputs<float>& out) {
  const int64_t states = s.states, square = states * states, length = s.length;
  HmmSweep sweep(s);
  sweep.middle = (length - 1) / 2;
  sweep.pitch = (states + kernels.width - 1) / kernels.width * kernels.width;
  sweep.xi = out.xi;
  // Room for all exponentials of a half, up to what stays in the second-level cache.
  int64_t slots = 1;
  while (slots < kernels.least_slots ||
         (slots < length / 2 && 2 * slots * kernels.slot_floats <= kRingFloats)) {
    slots *= 2;
  }
  const int64_t ring = out.xi != nullptr ? 0 : slots * kernels.slot_floats;
  const int pairs = out.xi != nullptr ? 1 : out.xi_sum != nullptr ? 2 : 0;
  const int64_t sums = pairs == 2 ? states * sweep.pitch : 0;
  const int64_t own_gamma = out.gamma == nullptr ? length * states : 0;
  Scratch scratch(Scratch::whole_lines(length * sweep.pitch) + Scratch::whole_lines(length) +
                  Scratch::whole_lines(own_gamma) + 2 * Scratch::whole_lines(sweep.pitch) +
                  2 * ring + 2 * Scratch::whole_lines(sums));
  sweep.emit = scratch.take(length * sweep.pitch);
  sweep.scale = scratch.take(length);
  sweep.gamma = out.gamma != nullptr ? out.gamma : scratch.take(own_gamma);
  sweep.front = {scratch.take(ring), slots};
  sweep.back = {scratch.take(ring), slots};
  std::vector<double> xi_sum(pairs == 2 ? size_t(2 * square) : 0);
  double* sum = xi_sum.data();
  for (HmmChain* chain : {&sweep.forward, &sweep.backward}) {
    chain->message = scratch.take(sweep.pitch);
    chain->pair_sums = scratch.take(sums);
    std::fill_n(chain->pair_sums, sums, 0.0f);
    chain->xi_sum = sum;
    sum += pairs == 2 ? square : 0;
  }
  kernels.forward_first(sweep);
  kernels.backward_first(sweep);
  *out.log_likelihood = float(meet(sweep));
  kernels.forward_second[pairs](sweep);
  kernels.backward_second[pairs](sweep);
  if (!certified(sweep)) return hmm_exact_posteriors(s, out);
  if (out.xi_sum == nullptr) return;
  if (pairs == 1) {
    xi_sum.assign(size_t(2 * square), 0.0);
    for (int64_t t = 1; t < length; ++t) {
      for (int64_t i = 0; i < square; ++i) {
        xi_sum[size_t(i)] += double(out.xi[(t - 1) * square + i]);
      }
    }
  }
  for (int64_t i = 0; i < square; ++i) {
    out.xi_sum[i] = float(xi_sum[size_t(i)] + xi_sum[size_t(square + i)]);
  }
}

}  // namespace

void hmm_posteriors(const HmmInput<double>& in, const HmmPosteriors<double>& out,
                    const Workers& workers) {
  workers.run(in.batch, [&](int64_t b) {
    const auto o = outputs_of(in, out, b);
    if (in.length(b) > 0) hmm_exact_posteriors(HmmSequence<double>(in, b), o);
  });
}

void hmm_posteriors(const HmmInput<float>& in, const HmmPosteriors<float>& out,
                    const Workers& workers) {
  const HmmTokenKernels kernels = hmm_token_kernels(in.states);
  workers.run(in.batch, [&](int64_t b) {
    const auto o = outputs_of(in, out, b);
    if (in.length(b) == 0) return;
    const HmmSequence<float> s(in, b);
    if (kernels.forward_first != nullptr) {
      token_posteriors(s, kernels, o);
    } else {
      hmm_exact_posteriors(s, o);
    }
  });
}

}  // namespace oneshot::cpu
