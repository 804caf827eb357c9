#include <algorithm>
#include <utility>
#include <vector>

#include "hmm/cpu/forward_backward/tasks.h"

#define ONESHOT_KERNEL_BODY "hmm/cpu/forward_backward/per_step.inc"
#include "cpu/foreach_isa.h"

namespace oneshot::cpu {

namespace {

// All nullptr where a message is more than a handful of vectors, and, with `recompute`, where the
// states do not fill them.
HmmPerStepKernels few_states_kernels(int64_t states, bool recompute) {
#if ONESHOT_X86
  // Half-empty vectors gain nothing: rows of up to eight states fit those of AVX2.
  if (isa() == Isa::kAvx512 && states <= 8) return avx2::hmm::few_states_kernels(states, recompute);
#endif
  ONESHOT_DISPATCH_ISA(hmm::few_states_kernels, states, recompute);
}

// Floats of a ring: what stays in the second-level cache beside the rest.
constexpr int64_t kRingFloats = 48 * 1024;

// Floats of the matrices of a sequence from which on exponentials are made twice instead of stored,
// unless xi keeps them: they would not stay in the second-level cache. No bit of a result depends
// on it.
constexpr int64_t kRecomputedFloats = int64_t{1} << 18;

// Floats of the matrices of all sequences from which on they are asked for ahead of time: in less,
// the hints cost more than they save (1.05 of the time at [32, 128] with 9 states).
constexpr int64_t kFarFloats = int64_t{1} << 19;

HmmPerStepKernels kernels_for(const HmmSequence<float>& s, bool xi) {
  if (!xi && (s.length - 1) * s.states * s.states >= kRecomputedFloats) {
    const HmmPerStepKernels kernels = few_states_kernels(s.states, true);
    if (kernels.forward_to_middle != nullptr) return kernels;
  }
  return hmm_per_step_kernels(s.states);
}

class PerStepTask : public HmmTask {
 public:
  PerStepTask(const HmmSequence<float>& s, const HmmSequenceOutputs<float>& out,
              std::shared_ptr<const HmmHomogeneousMatrix> homogeneous, int64_t call_floats)
      : out_(out),
        sweep_(s),
        kernels_(homogeneous != nullptr ? hmm_per_step_kernels(s.states)
                                        : kernels_for(s, out.xi != nullptr)),
        matrix_(std::move(homogeneous)) {
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
    if (matrix_ != nullptr) sweep_.homogeneous = matrix_->dense();
    const bool ringless = out.xi != nullptr || matrix_ != nullptr || kernels_.recomputes;
    const int64_t ring = ringless ? 0 : slots * kernels_.slot_floats;
    const int64_t highs = kernels_.recomputes ? s.length : 0;
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

  void messages_to_middle(int directions) override {
    if (directions & kHmmForward) kernels_.forward_to_middle(sweep_);
    if (directions & kHmmBackward) kernels_.backward_to_middle(sweep_);
  }
  void normalise_at_middle() override {
    const double steps = double(sweep_.sequence.length - 1);
    const double shift = matrix_ != nullptr ? steps * matrix_->shift() : 0.0;
    *out_.log_likelihood = float(hmm_normalise_at_middle(sweep_) + shift);
  }
  void posteriors_from_middle(int directions) override {
    if (directions & kHmmForward) kernels_.forward_from_middle[pairs_](sweep_);
    if (directions & kHmmBackward) kernels_.backward_from_middle[pairs_](sweep_);
  }
  void finish_pairs() override {
    const HmmSequence<float>& s = sweep_.sequence;
    if (!hmm_certified(sweep_)) return hmm_double_posteriors(s, out_);
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
  HmmPerStepKernels kernels_;
  std::shared_ptr<const HmmHomogeneousMatrix> matrix_;
  HmmScratch scratch_;
  std::vector<double> xi_sum_;  // of both chains
  int pairs_;
};

}  // namespace

HmmPerStepKernels hmm_per_step_kernels(int64_t states) {
  const HmmPerStepKernels few_states = few_states_kernels(states, false);
  return few_states.forward_to_middle != nullptr ? few_states : hmm_many_states_kernels(states);
}

bool hmm_homogeneous_one_by_one(int64_t states) {
  return states <= 8 && few_states_kernels(states, false).forward_to_middle != nullptr;
}

std::unique_ptr<HmmTask> hmm_per_step_task(const HmmSequence<float>& s,
                                           const HmmSequenceOutputs<float>& out,
                                           std::shared_ptr<const HmmHomogeneousMatrix> homogeneous,
                                           int64_t call_floats) {
  return std::make_unique<PerStepTask>(s, out, std::move(homogeneous), call_floats);
}

}  // namespace oneshot::cpu
