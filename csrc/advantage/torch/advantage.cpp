// torch ops of the `advantage` family on CPU tensors (stable ABI only).
#include "advantage/cpu/advantage.h"

#include <algorithm>

#include "advantage/torch/ops.h"
#include "torch/parallel.h"

namespace oneshot {
namespace {

struct Cpu {
  static constexpr On kOn = On::kCpu;
  explicit Cpu(const Tensor&) {}

  cpu::Groups groups(int64_t size, const OptionalTensor& ids, const OptionalTensor& sizes,
                     int64_t rows) const {
    if (ids) return cpu::groups_of_ids(data<int64_t>(ids), rows);
    if (sizes) return cpu::groups_of_sizes(data<int64_t>(sizes), sizes->size(0), rows);
    return cpu::groups_of_size(size, rows);
  }

  template <typename T>
  void group_advantages(const TokenRows<T>& tokens, const int64_t* lengths,
                        const cpu::Groups& groups, const GroupRule& rule) const {
    cpu::group_advantages(tokens, lengths, groups, rule, TorchThreads{});
  }

  void check_offsets(const Tensor& offsets, int64_t tokens) const {
    cpu::check_cu_seqlens(data<int64_t>(offsets), offsets.size(0), tokens);
  }

  template <typename T>
  void gae(const GaeArgs<T>& args, int64_t tokens) const {
    // Sequences share vectors, so a range has at least one vector of them.
    const int64_t steps = tokens / std::max<int64_t>(args.sequences, 1);
    TorchThreads{}(0, args.sequences, std::max<int64_t>(16, grain_of(steps)),
                   [&](int64_t begin, int64_t end) { cpu::gae(args, begin, end); });
  }

  template <typename T>
  void whiten(const WhitenArgs<T>& args, double eps) const {
    cpu::whiten(args, eps, TorchThreads{});
  }
};

}  // namespace
}  // namespace oneshot

STABLE_TORCH_LIBRARY_IMPL(oneshot, CPU, m) { oneshot::register_advantage<oneshot::Cpu>(m); }
