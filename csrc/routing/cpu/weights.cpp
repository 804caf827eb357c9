#include "routing/cpu/weights.h"

#include <algorithm>
#include <stdexcept>
#include <string>

#define ONESHOT_KERNEL_BODY "routing/cpu/weights.inc"
#include "cpu/foreach_isa.h"

namespace oneshot::cpu {

std::vector<int64_t> distinct_tasks(const int64_t* ids, int64_t count, int64_t tasks,
                                    int64_t* place) {
  std::vector<int64_t> distinct(ids, ids + count);
  std::sort(distinct.begin(), distinct.end());
  distinct.erase(std::unique(distinct.begin(), distinct.end()), distinct.end());
  if (count > 0 && (distinct.front() < 0 || distinct.back() >= tasks)) {
    const int64_t wrong = distinct.front() < 0 ? distinct.front() : distinct.back();
    throw std::invalid_argument("task_ids must lie in [0, " + std::to_string(tasks) + "), got " +
                                std::to_string(wrong));
  }
  for (int64_t i = 0; i < count; ++i) {
    place[i] = std::lower_bound(distinct.begin(), distinct.end(), ids[i]) - distinct.begin();
  }
  return distinct;
}

template <typename Real>
void routing_weights(const RoutingWeights& args, Real* weights, int64_t layer_begin,
                     int64_t layer_end) {
  ONESHOT_DISPATCH_ISA(routing_weights_kernels::forward, args, weights, layer_begin, layer_end);
}

template <typename Real>
void routing_weights_backward(const RoutingWeights& args, const Real* grad, const Real* weights,
                              Real* grad_logits, int64_t layer_begin, int64_t layer_end) {
  ONESHOT_DISPATCH_ISA(routing_weights_kernels::backward, args, grad, weights, grad_logits,
                       layer_begin, layer_end);
}

template void routing_weights(const RoutingWeights&, float*, int64_t, int64_t);
template void routing_weights(const RoutingWeights&, double*, int64_t, int64_t);
template void routing_weights_backward(const RoutingWeights&, const float*, const float*, float*,
                                       int64_t, int64_t);
template void routing_weights_backward(const RoutingWeights&, const double*, const double*, double*,
                                       int64_t, int64_t);

}  // namespace oneshot::cpu
