// Work that hmm_posteriors hands out: one sequence, or a group of sequences that share a matrix.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>
#include <vector>

#include "common/parallel.h"
#include "hmm/cpu/double_precision/forward_backward.h"
#include "hmm/cpu/forward_backward/sweep.h"

namespace oneshot::cpu {

// Called in this order. The two that take `directions` (of HmmDirection) are called with both at
// once or with one at a time, then possibly on two threads.
class HmmTask {
 public:
  virtual ~HmmTask() = default;
  // Messages from both ends of a sequence to its middle.
  virtual void messages_to_middle(int directions) = 0;
  // The likelihood, and messages scaled so that sum forward backward = 1.
  virtual void normalise_at_middle() = 0;
  // On to the ends, with the posterior of each step.
  virtual void posteriors_from_middle(int directions) = 0;
  // Sums over pairs; sequences that float32 cannot certify are computed again in double.
  virtual void finish_pairs() = 0;
};

// Memory in whole cache lines.
class HmmScratch {
 public:
  static int64_t lines(int64_t floats) { return (floats + 15) / 16 * 16; }
  HmmScratch() = default;
  // `floats`: the sum of lines() of all pieces. The allocator wants whole lines too.
  explicit HmmScratch(int64_t floats)
      : memory_(static_cast<float*>(
            std::aligned_alloc(64, size_t(lines(floats) + 16) * sizeof(float)))),
        next_(memory_.get()) {
    if (memory_ == nullptr) throw std::bad_alloc();
  }
  float* take(int64_t floats) {
    float* piece = next_;
    next_ += lines(floats);
    return piece;
  }

 private:
  struct Free {
    void operator()(float* p) const { std::free(p); }
  };
  std::unique_ptr<float, Free> memory_;
  float* next_ = nullptr;
};

// What every sweep needs besides matrices.
int64_t hmm_sweep_floats(const HmmSweep&, const HmmSequenceOutputs<float>&);
void hmm_sweep_memory(HmmSweep&, const HmmSequenceOutputs<float>&, HmmScratch&);

// Where the chains have met: log Z, and messages scaled so that sum forward backward = 1.
double hmm_normalise_at_middle(HmmSweep&);

// Every number that float32 flushed (below 2^-126 of a message that sums to about 1) changes Z by
// that times the message of the other chain at its place. So either all that was lost is below
// 2^-24 of Z, or this is false, and the sequence has to be done again with wider numbers.
bool hmm_certified(const HmmSweep&);

// A matrix shared by all steps, in the forms that the kernels read.
class HmmHomogeneousMatrix {
 public:
  // `rows`: sequences of the smallest group.
  HmmHomogeneousMatrix(const float* potentials, int64_t states, int64_t rows, const Workers&);
  int64_t states() const { return states_; }
  int64_t pitch() const { return pitch_; }
  double shift() const { return shift_; }
  float* dense() const { return dense_; }  // [K, K], only where rows are one vector
  // The part of a group that does not depend on its sequences.
  HmmGroup group() const;

 private:
  int64_t states_, pitch_, panel_;
  double shift_;
  HmmScratch scratch_;
  float *matrix_, *forward_, *backward_, *dense_;
};

// One sequence, with a matrix for every step, or `homogeneous` for all. call_floats: size of the
// matrices of all sequences of the call.
std::unique_ptr<HmmTask> hmm_per_step_task(const HmmSequence<float>&,
                                           const HmmSequenceOutputs<float>&,
                                           std::shared_ptr<const HmmHomogeneousMatrix> homogeneous,
                                           int64_t call_floats);

// Whether sequences that share a matrix go one by one as well. For few states they do: with
// messages that stay in registers one long sequence takes 0.65 of the time, at the price of 1.2
// times that of a batch.
bool hmm_homogeneous_one_by_one(int64_t states);

struct HmmJob {
  HmmSequence<float> sequence;
  HmmSequenceOutputs<float> outputs;
};

// Sequences of three steps or more, the longest first.
std::unique_ptr<HmmTask> hmm_homogeneous_task(std::shared_ptr<const HmmHomogeneousMatrix>,
                                              const std::vector<HmmJob>&);

// How many of `count` sequences should form a group.
int64_t hmm_group_size(int64_t count, int64_t states, int threads);

}  // namespace oneshot::cpu
