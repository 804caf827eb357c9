// torch ops of the `routing` family on CPU tensors (stable ABI only).
#include "routing/cpu/routing.h"

#include "routing/torch/ops.h"
#include "torch/parallel.h"

namespace oneshot {
namespace {

struct Cpu {
  static constexpr On kOn = On::kCpu;
  explicit Cpu(const Tensor&) {}

  void mix(const MixForward& args) const {
    TorchThreads{}(0, cpu::mix_items(args.inventory), cpu::mix_grain(args.inventory, args.mixtures),
                   [&](int64_t begin, int64_t end) { cpu::mix(args, begin, end); });
  }

  void mix_backward(const MixBackward& args) const { cpu::mix_backward(args, TorchThreads{}); }

  cpu::RowGroups rows(const Tensor& x, const Tensor& mixture_of, int64_t mixtures) const {
    return cpu::group_rows(data<int64_t>(mixture_of), x.size(0), x.size(1), mixtures);
  }

  void lora(const LoraForward& args, const cpu::RowGroups& rows) const {
    TorchThreads{}(0, int64_t(rows.blocks.size()), 1,
                   [&](int64_t begin, int64_t end) { cpu::lora(args, rows, begin, end); });
  }

  void lora_backward(const LoraBackward& args, const cpu::RowGroups& rows) const {
    cpu::lora_backward(args, rows, int64_t(torch::stable::get_num_threads()), TorchThreads{});
  }

  // Mixtures are always made: only a GPU has kernels that work from the inventories.
  bool prefers_inventory(const Tensor&, const Tensor&, const Tensor&) const { return false; }
  std::tuple<Tensor, Tensor> inventory_lora(const Tensor& x, const Tensor&, const Tensor&,
                                            const Tensor&, const Tensor&, const OptionalTensor&,
                                            double) const {
    return {nothing(x), nothing(x)};
  }
};

}  // namespace
}  // namespace oneshot

STABLE_TORCH_LIBRARY_IMPL(oneshot, CPU, m) { oneshot::register_routing<oneshot::Cpu>(m); }
