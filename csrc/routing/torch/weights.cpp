// torch ops of routing weights on CPU tensors (stable ABI only).
#include "routing/cpu/weights.h"

#include <algorithm>
#include <tuple>
#include <vector>

#include "routing/torch/shapes.h"

namespace oneshot {
namespace {

// Fewer logits than this are not worth another thread.
constexpr int64_t kLogitsOfThread = 16384;

std::tuple<Tensor, Tensor> distinct_tasks(const Tensor& task_ids, int64_t tasks) {
  check_cpu(task_ids, "task_ids");
  check_dtype(task_ids, "task_ids", ScalarType::Long, "int64");
  const Tensor ids = torch::stable::contiguous(task_ids);
  Tensor place = torch::stable::new_empty(ids, ids.sizes());
  const std::vector<int64_t> found =
      cpu::distinct_tasks(static_cast<const int64_t*>(ids.const_data_ptr()), ids.numel(), tasks,
                          static_cast<int64_t*>(place.mutable_data_ptr()));
  Tensor distinct = torch::stable::new_empty(ids, std::vector<int64_t>{int64_t(found.size())});
  std::copy(found.begin(), found.end(), static_cast<int64_t*>(distinct.mutable_data_ptr()));
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
             static_cast<const int64_t*>(chosen.const_data_ptr()),
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
    const int64_t of_layer = args.rows * args.heads * args.skills;
    const int64_t grain = std::max<int64_t>(1, kLogitsOfThread / std::max<int64_t>(1, of_layer));
    torch::stable::parallel_for(0, shape[0], grain, body);
  }
};

template <typename Real>
void forward(const Weights& weights, Tensor& out) {
  auto* to = static_cast<Real*>(out.mutable_data_ptr());
  weights.each_layer(
      [&](int64_t begin, int64_t end) { cpu::routing_weights(weights.args, to, begin, end); });
}

Tensor routing_weights(const Tensor& logits, const Tensor& tasks, double eps) {
  const Weights weights(logits, tasks, eps);
  Tensor out = torch::stable::new_empty(logits, weights.shape);
  if (real_type(logits) == ScalarType::Double) {
    forward<double>(weights, out);
  } else {
    forward<float>(weights, out);
  }
  return out;
}

template <typename Real>
void backward(const Weights& weights, const Tensor& grad, const Tensor& output,
              Tensor& grad_logits) {
  const auto* from = static_cast<const Real*>(grad.const_data_ptr());
  const auto* shares = static_cast<const Real*>(output.const_data_ptr());
  auto* to = static_cast<Real*>(grad_logits.mutable_data_ptr());
  weights.each_layer([&](int64_t begin, int64_t end) {
    cpu::routing_weights_backward(weights.args, from, shares, to, begin, end);
  });
}

Tensor routing_weights_backward(const Tensor& grad, const Tensor& logits, const Tensor& tasks,
                                const Tensor& output, double eps) {
  const Weights weights(logits, tasks, eps);
  const ScalarType real = real_type(logits);
  const Tensor dense_grad = dense(On::kCpu, grad, "grad", real, weights.shape);
  const Tensor dense_output = dense(On::kCpu, output, "weights", real, weights.shape);
  Tensor grad_logits = torch::stable::new_empty(weights.logits, weights.logits.sizes());
  if (real == ScalarType::Double) {
    backward<double>(weights, dense_grad, dense_output, grad_logits);
  } else {
    backward<float>(weights, dense_grad, dense_output, grad_logits);
  }
  return grad_logits;
}

}  // namespace
}  // namespace oneshot

STABLE_TORCH_LIBRARY_IMPL(oneshot, CPU, m) {
  m.impl("distinct_tasks", TORCH_BOX(&oneshot::distinct_tasks));
  m.impl("routing_weights", TORCH_BOX(&oneshot::routing_weights));
  m.impl("routing_weights_backward", TORCH_BOX(&oneshot::routing_weights_backward));
}
