// torch ops of routing weights on CPU tensors (stable ABI only).
#include "routing/cpu/weights.h"

#include <algorithm>
#include <tuple>
#include <vector>

#include "routing/torch/shapes.h"
#include "torch/parallel.h"

namespace oneshot {
namespace {

std::tuple<Tensor, Tensor> distinct_tasks(const Tensor& task_ids, int64_t tasks) {
  check_cpu(task_ids, "task_ids");
  check_dtype(task_ids, "task_ids", ScalarType::Long, "int64");
  const Tensor ids = dense(task_ids);
  Tensor place = fresh_like(ids);
  const std::vector<int64_t> found =
      cpu::distinct_tasks(data<int64_t>(ids), ids.numel(), tasks, mutable_data<int64_t>(place));
  Tensor distinct = fresh(ids, {int64_t(found.size())});
  std::copy(found.begin(), found.end(), mutable_data<int64_t>(distinct));
  return {distinct, place};
}

// Logits [layers, tasks, heads, skills] in Real and the tasks chosen from them.
struct Weights {
  Tensor logits, chosen;
  std::vector<int64_t> shape;  // [layers, rows, heads, skills]
  cpu::RoutingWeights args;

  Weights(const Tensor& given, const Tensor& tasks, double eps)
      : logits(dense(On::kCpu, given, "logits", real_type(given), {-1, -1, -1, -1})),
        chosen(dense(On::kCpu, tasks, "tasks", ScalarType::Long, {-1})),
        shape{given.size(0), tasks.size(0), given.size(2), given.size(3)},
        args{logits.const_data_ptr(),
             data<int64_t>(chosen),
             given.size(1),
             tasks.size(0),
             given.size(2),
             given.size(3),
             eps} {
    for (int64_t u = 0; u < args.rows; ++u) {
      if (args.chosen[u] < 0 || args.chosen[u] >= args.tasks) {
        fail("tasks must lie in [0, ", args.tasks, "), got ", args.chosen[u], " at place ", u);
      }
    }
  }

  template <typename Body>
  void each_layer(const Body& body) const {
    TorchThreads{}(0, shape[0], grain_of(args.rows * args.heads * args.skills), body);
  }
};

Tensor routing_weights(const Tensor& logits, const Tensor& tasks, double eps) {
  const Weights weights(logits, tasks, eps);
  const Tensor out = fresh(logits, weights.shape);
  with_real_type(logits, [&](auto type) {
    auto* to = mutable_data<decltype(type)>(out);
    weights.each_layer(
        [&](int64_t begin, int64_t end) { cpu::routing_weights(weights.args, to, begin, end); });
  });
  return out;
}

Tensor routing_weights_backward(const Tensor& grad, const Tensor& logits, const Tensor& tasks,
                                const Tensor& output, double eps) {
  const Weights weights(logits, tasks, eps);
  const ScalarType real = real_type(logits);
  const Tensor upstream = dense(On::kCpu, grad, "grad", real, weights.shape);
  const Tensor shares = dense(On::kCpu, output, "weights", real, weights.shape);
  const Tensor grad_logits = fresh_like(weights.logits);
  with_real_type(logits, [&](auto type) {
    using Real = decltype(type);
    weights.each_layer([&](int64_t begin, int64_t end) {
      cpu::routing_weights_backward(weights.args, data<Real>(upstream), data<Real>(shares),
                                    mutable_data<Real>(grad_logits), begin, end);
    });
  });
  return grad_logits;
}

}  // namespace
}  // namespace oneshot

STABLE_TORCH_LIBRARY_IMPL(oneshot, CPU, m) {
  m.impl("distinct_tasks", TORCH_BOX(&oneshot::distinct_tasks));
  m.impl("routing_weights", TORCH_BOX(&oneshot::routing_weights));
  m.impl("routing_weights_backward", TORCH_BOX(&oneshot::routing_weights_backward));
}
