#include <algorithm>
#include <utility>

#include "hmm/cpu/forward_backward/tasks.h"

#define ONESHOT_KERNEL_BODY "hmm/cpu/forward_backward/homogeneous.inc"
#include "cpu/foreach_isa.h"

namespace oneshot::cpu {

HmmHomogeneousKernels hmm_homogeneous_kernels(int64_t states) {
#if ONESHOT_X86
  if (isa() == Isa::kAvx512 && states <= 8) return avx2::hmm::homogeneous_kernels();
#endif
  (void)states;
  ONESHOT_DISPATCH_ISA(hmm::homogeneous_kernels);
}

namespace {

// From so many states on, a step is long enough that both chains side by side only share caches.
constexpr int64_t kOneByOneStates = 64;

// Columns of a [K, pitch] matrix in panels: [panel][K][columns of it].
void pack(const float* matrix, int64_t states, int64_t pitch, int64_t columns, float* out) {
  for (int64_t first = 0; first < pitch; first += columns) {
    const int64_t some = std::min(columns, pitch - first);
    for (int64_t i = 0; i < states; ++i, out += some) {
      std::copy_n(matrix + i * pitch + first, some, out);
    }
  }
}

class HomogeneousTask : public HmmTask {
 public:
  HomogeneousTask(std::shared_ptr<const HmmHomogeneousMatrix> matrix,
                  const std::vector<HmmJob>& jobs)
      : matrix_(std::move(matrix)), group_(matrix_->group()) {
    int64_t floats = 0;
    for (const HmmJob& job : jobs) {
      const HmmSequence<float>& s = job.sequence;
      outputs_.push_back(job.outputs);
      sweeps_.emplace_back(s);
      sweeps_.back().middle = (s.length - 1) / 2;
      sweeps_.back().pitch = matrix_->pitch();
      sweeps_.back().xi = job.outputs.xi;
      floats += hmm_sweep_floats(sweeps_.back(), job.outputs);
      if (pairs(job.outputs)) floats += HmmScratch::lines(s.length * matrix_->pitch());
    }
    scratch_ = HmmScratch(floats);
    for (size_t r = 0; r < sweeps_.size(); ++r) {
      hmm_sweep_memory(sweeps_[r], outputs_[r], scratch_);
      if (pairs(outputs_[r])) {
        sweeps_[r].source = scratch_.take(sweeps_[r].sequence.length * matrix_->pitch());
      }
    }
    rows_.resize(2 * sweeps_.size());
    results_.resize(2 * sweeps_.size());
    group_.sweeps = sweeps_.data();
    group_.count = int64_t(sweeps_.size());
    group_.rows = rows_.data();
    group_.results = results_.data();
  }

  void messages_to_middle(int directions) override { run(kernels_.to_middle, directions); }
  void normalise_at_middle() override {
    for (size_t r = 0; r < sweeps_.size(); ++r) {
      const double steps = double(sweeps_[r].sequence.length - 1);
      *outputs_[r].log_likelihood =
          float(hmm_normalise_at_middle(sweeps_[r]) + steps * matrix_->shift());
    }
  }
  void posteriors_from_middle(int directions) override { run(kernels_.from_middle, directions); }
  void finish_pairs() override {
    const int64_t columns = std::min(matrix_->pitch(), 16 * kernels_.width);
    HmmScratch scratch((kHmmSumSteps + 2 * matrix_->states()) * columns);
    float* sums = scratch.take(0);
    for (size_t r = 0; r < sweeps_.size(); ++r) {
      if (!hmm_certified(sweeps_[r])) {
        hmm_double_posteriors(sweeps_[r].sequence, outputs_[r]);
        continue;
      }
      if (outputs_[r].xi_sum != nullptr) {
        kernels_.pairs_sum(group_, sweeps_[r], sums, outputs_[r].xi_sum);
      }
      if (outputs_[r].xi != nullptr) kernels_.pairs(group_, sweeps_[r]);
    }
  }

 private:
  static bool pairs(const HmmSequenceOutputs<float>& out) {
    return out.xi != nullptr || out.xi_sum != nullptr;
  }
  void run(void (*half)(HmmGroup&, int), int directions) {
    if (matrix_->states() < kOneByOneStates) return half(group_, directions);
    if (directions & kHmmForward) half(group_, kHmmForward);
    if (directions & kHmmBackward) half(group_, kHmmBackward);
  }

  std::shared_ptr<const HmmHomogeneousMatrix> matrix_;
  HmmGroup group_;
  HmmHomogeneousKernels kernels_ = hmm_homogeneous_kernels(matrix_->states());
  std::vector<HmmSequenceOutputs<float>> outputs_;
  std::vector<HmmSweep> sweeps_;
  HmmScratch scratch_;
  std::vector<const float*> rows_;
  std::vector<float*> results_;
};

}  // namespace

HmmHomogeneousMatrix::HmmHomogeneousMatrix(const float* potentials, int64_t states, int64_t rows,
                                           const Workers& workers)
    : states_(states) {
  const HmmHomogeneousKernels kernels = hmm_homogeneous_kernels(states);
  pitch_ = (states + kernels.width - 1) / kernels.width * kernels.width;
  panel_ = kernels.panel(rows);
  const int64_t floats = HmmScratch::lines(states * pitch_);
  scratch_ = HmmScratch(4 * floats);
  matrix_ = scratch_.take(floats);
  forward_ = scratch_.take(floats);
  backward_ = scratch_.take(floats);
  dense_ = scratch_.take(floats);
  float high = -std::numeric_limits<float>::infinity();
  for (int64_t i = 0; i < states * states; ++i) high = std::max(high, potentials[i]);
  if (high == -std::numeric_limits<float>::infinity()) high = 0.0f;
  shift_ = double(high);
  // In double, as the rounding of a number that every step multiplies by is not zero on average.
  const auto exponentials = [&](int64_t i) {
    for (int64_t j = 0; j < pitch_; ++j) {
      const double x = j < states ? std::exp(double(potentials[i * states + j]) - shift_) : 0.0;
      matrix_[i * pitch_ + j] = float(x);
    }
  };
  if (states < kOneByOneStates) {
    for (int64_t i = 0; i < states; ++i) exponentials(i);
  } else {
    workers.run(states, exponentials);
  }
  // The transposed matrix, in the place of the packed one for a moment.
  for (int64_t i = 0; i < states; ++i) {
    for (int64_t j = 0; j < pitch_; ++j) {
      forward_[i * pitch_ + j] = j < states ? matrix_[j * pitch_ + i] : 0.0f;
    }
  }
  const int64_t columns = panel_ * kernels.width;
  pack(forward_, states, pitch_, columns, backward_);
  pack(matrix_, states, pitch_, columns, forward_);
  for (int64_t i = 0; i < states; ++i)
    std::copy_n(matrix_ + i * pitch_, states, dense_ + i * states);
}

HmmGroup HmmHomogeneousMatrix::group() const {
  HmmGroup group{};
  group.states = states_;
  group.pitch = pitch_;
  group.matrix = matrix_;
  group.forward = forward_;
  group.backward = backward_;
  group.panel = panel_;
  return group;
}

std::unique_ptr<HmmTask> hmm_homogeneous_task(std::shared_ptr<const HmmHomogeneousMatrix> matrix,
                                              const std::vector<HmmJob>& jobs) {
  return std::make_unique<HomogeneousTask>(std::move(matrix), jobs);
}

int64_t hmm_group_size(int64_t count, int64_t states, int threads) {
  const int64_t most = states < kOneByOneStates ? 8 : 48;
  return std::clamp<int64_t>((count + threads - 1) / threads, 1, most);
}

}  // namespace oneshot::cpu
