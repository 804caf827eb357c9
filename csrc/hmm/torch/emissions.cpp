// torch ops that combine label sources into emissions on CPU tensors (stable ABI only).
#include "hmm/torch/emissions.h"

#include "hmm/cpu/hmm.h"
#include "torch/parallel.h"

namespace oneshot {
namespace {

struct Cpu {
  static constexpr On kOn = On::kCpu;
  explicit Cpu(const Tensor&) {}

  template <typename T>
  void combine(const EmissionInput<T>& in, T* out) const {
    cpu::combine_emissions(in, out, torch_workers());
  }
  template <typename T>
  void combine_backward(const EmissionInput<T>& in, const EmissionGradients<T>& out) const {
    cpu::combine_emissions_backward(in, out, torch_workers());
  }
};

}  // namespace
}  // namespace oneshot

STABLE_TORCH_LIBRARY_IMPL(oneshot, CPU, m) { oneshot::register_emissions<oneshot::Cpu>(m); }
