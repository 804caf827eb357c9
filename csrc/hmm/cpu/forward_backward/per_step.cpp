#include <algorithm>
#include <utility>
#include <vector>

#include "hmm/cpu/forward_backward/tasks.h"

#define ONESHOT_KERNEL_BODY "hmm/cpu/forward_backward/per_step.inc"
#include "cpu/foreach_isa.h"

namespace oneshot::cpu {

namespace {

// All nullptr where a message is more than a handful of vectors, and, with `remake`, where the
// states do not fill them.
HmmTokenKernels narrow_kernels(int64_t states, bool remake) {
#if ONESHOT_X86
  // Half-empty vectors gain nothing: rows of up to eight states fit those of AVX2.
  if (isa() == Isa::kAvx512 && states <= 8) return avx2::hmm::token_kernels(states, remake);
#endif
  ONESHOT_DISPATCH_ISA(hmm::token_kernels, states, remake);
}

// Floats of a ring: what stays in the second-level cache beside the rest.
constexpr int64_t kRingFloats = 48 * 1024;

// Floats of the matrices of a sequence from which on exponentials are made twice instead of kept,
// unless xi keeps them: they would not stay in the second-level cache. No bit of a result depends
// on it.
constexpr int64_t kRemadeFloats = int64_t{1} << 18;

// Floats of the matrices of all sequences from which on they are asked for ahead of time: in less,
// the hints cost more than they save (1.05 of the time at [32, 128] with 9 states).
constexpr int64_t kFarFloats = int64_t{1} << 19;

HmmTokenKernels kernels_for(const HmmSequence<float>& s, bool xi) {
  if (!xi && (s.length - 1) * s.states * s.states >= kRemadeFloats) {
    const HmmTokenKernels kernels = narrow_kernels(s.states, true);
    if (kernels.forward_first != nullptr) return kernels;
  }
  return hmm_token_kernels(s.states);
}

class TokenUnit : public HmmUnit {
 public:
  TokenUnit(const HmmSequence<float>& s, const HmmSequenceOutputs<float>& out,
            std::shared_ptr<const HmmSharedMatrix> constant, int64_t call_floats)
      : out_(out),
        sweep_(s),
        kernels_(constant != nullptr ? hmm_token_kernels(s.states)
                                     : kernels_for(s, out.xi != nullptr)),
        constant_(std::move(constant)) {
    const int64_t states = s.states, square = states * states;
    sweep_.middle = (s.length - 1) / 2;
    sweep_.pitch = (states + kernels_.width - 1) / kernels_.width * kernels_.width;
    sweep_.xi = out.xi;
    sweep_.far = call_floats >= kFarFloats;
    int64_t slots = 1;
    while (slots < kernels_.least_slots ||
           (slots < s.length / 2 && 2 * slots * kernels_.slot_floats <= kRingFloats)) {
      slots *= 2;
    }
    if (constant_ != nullptr) sweep_.constant = constant_->dense();
    const bool ringless = out.xi != nullptr || constant_ != nullptr || kernels_.makes_twice;
    const int64_t ring = ringless ? 0 : slots * kernels_.slot_floats;
    const int64_t highs = kernels_.makes_twice ? s.length : 0;
    const bool sums = out.xi == nullptr && out.xi_sum != nullptr;
    const int64_t sum_floats = sums ? states * sweep_.pitch : 0;
    scratch_ = HmmScratch(hmm_sweep_floats(sweep_, out) + 2 * HmmScratch::lines(ring) +
                          2 * HmmScratch::lines(sum_floats) + HmmScratch::lines(highs));
    hmm_sweep_memory(sweep_, out, scratch_);
    sweep_.front = {scratch_.take(ring), slots};
    sweep_.back = {scratch_.take(ring), slots};
    sweep_.high = scratch_.take(highs);
    if (sums) {
      xi_sum_.resize(size_t(2 * square));
      sweep_.forward.xi_sum = xi_sum_.data();
      sweep_.backward.xi_sum = xi_sum_.data() + square;
      for (HmmChain* chain : {&sweep_.forward, &sweep_.backward}) {
        chain->pair_sums = scratch_.take(sum_floats);
        std::fill_n(chain->pair_sums, sum_floats, 0.0f);
      }
    }
    pairs_ = out.xi != nullptr ? 1 : sums ? 2 : 0;
  }

  void first(int directions) override {
    if (directions & kHmmForward) kernels_.forward_first(sweep_);
    if (directions & kHmmBackward) kernels_.backward_first(sweep_);
  }
  void meet() override {
    const double steps = double(sweep_.sequence.length - 1);
    const double shift = constant_ != nullptr ? steps * constant_->shift() : 0.0;
    *out_.log_likelihood = float(hmm_meet(sweep_) + shift);
  }
  void second(int directions) override {
    if (directions & kHmmForward) kernels_.forward_second[pairs_](sweep_);
    if (directions & kHmmBackward) kernels_.backward_second[pairs_](sweep_);
  }
  void finish() override {
    const HmmSequence<float>& s = sweep_.sequence;
    if (!hmm_certified(sweep_)) return hmm_exact_posteriors(s, out_);
    if (out_.xi_sum == nullptr) return;
    const int64_t square = s.states * s.states;
    if (out_.xi != nullptr) {
      xi_sum_.assign(size_t(2 * square), 0.0);
      for (int64_t t = 1; t < s.length; ++t) {
        const float* pairs = out_.xi + (t - 1) * square;
        for (int64_t i = 0; i < square; ++i) xi_sum_[size_t(i)] += double(pairs[i]);
      }
    }
    for (int64_t i = 0; i < square; ++i) {
      out_.xi_sum[i] = float(xi_sum_[size_t(i)] + xi_sum_[size_t(square + i)]);
    }
  }

 private:
  HmmSequenceOutputs<float> out_;
  HmmSweep sweep_;
  HmmTokenKernels kernels_;
  std::shared_ptr<const HmmSharedMatrix> constant_;
  HmmScratch scratch_;
  std::vector<double> xi_sum_;  // of both chains
  int pairs_;
};

}  // namespace

HmmTokenKernels hmm_token_kernels(int64_t states) {
  const HmmTokenKernels narrow = narrow_kernels(states, false);
  return narrow.forward_first != nullptr ? narrow : hmm_wide_kernels(states);
}

bool hmm_shared_one_by_one(int64_t states) {
  return states <= 8 && narrow_kernels(states, false).forward_first != nullptr;
}

std::unique_ptr<HmmUnit> hmm_token_unit(const HmmSequence<float>& s,
                                        const HmmSequenceOutputs<float>& out,
                                        std::shared_ptr<const HmmSharedMatrix> constant,
                                        int64_t call_floats) {
  return std::make_unique<TokenUnit>(s, out, std::move(constant), call_floats);
}

}  // namespace oneshot::cpu
