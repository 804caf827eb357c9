// How much of each skill each task takes: torch-free contract on raw pointers. "Real" is float or
// double.
#pragma once

#include <cstdint>
#include <vector>

namespace oneshot::cpu {

// Sorted distinct ids, and the place of each id among them (`place`, as many as ids). Throws
// std::invalid_argument unless every id lies in [0, tasks).
std::vector<int64_t> distinct_tasks(const int64_t* ids, int64_t count, int64_t tasks,
                                    int64_t* place);

// weights[l, u] = s / (sum over skills of s + eps), s = sigmoid(logits[l, chosen[u]]). Work items
// are layers.
struct RoutingWeights {
  const void* logits;     // Real [layers, tasks, heads, skills]
  const int64_t* chosen;  // [rows], each in [0, tasks); may name a task more than once
  int64_t tasks, rows, heads, skills;
  double eps;
};
template <typename Real>
void routing_weights(const RoutingWeights&, Real* weights, int64_t layer_begin, int64_t layer_end);
// Writes all of grad_logits [layers, tasks, heads, skills].
template <typename Real>
void routing_weights_backward(const RoutingWeights&, const Real* grad, const Real* weights,
                              Real* grad_logits, int64_t layer_begin, int64_t layer_end);

}  // namespace oneshot::cpu
