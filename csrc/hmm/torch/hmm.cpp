// torch ops of the `hmm` family on CPU tensors (stable ABI only).
#include "hmm/cpu/hmm.h"

#include "hmm/torch/ops.h"
#include "torch/parallel.h"

namespace oneshot {
namespace {

struct Cpu {
  static constexpr On kOn = On::kCpu;
  explicit Cpu(const Tensor&) {}

  template <typename T>
  void posteriors(const HmmInput<T>& in, const HmmPosteriors<T>& out) const {
    cpu::hmm_posteriors(in, out, torch_workers());
  }
  template <typename T>
  void posteriors_backward(const HmmInput<T>& in, const HmmUpstream<T>& up,
                           const HmmGradients<T>& out) const {
    cpu::hmm_posteriors_backward(in, up, out, torch_workers());
  }
  template <typename T>
  void viterbi(const HmmInput<T>& in, int64_t* path, T* score) const {
    cpu::hmm_viterbi(in, path, score, torch_workers());
  }
  template <typename T>
  void sample(const HmmInput<T>& in, const HmmSampling& how, int64_t* paths) const {
    cpu::hmm_sample(in, how, paths, torch_workers());
  }
};

}  // namespace
}  // namespace oneshot

STABLE_TORCH_LIBRARY_IMPL(oneshot, CPU, m) { oneshot::register_hmm<oneshot::Cpu>(m); }
