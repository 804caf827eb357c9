// Policy loss, value loss and importance weights on the CPU: torch-free contract on raw pointers.
//
// All three work sequence by sequence. A pass over sequences [begin, end) touches nothing that
// belongs to another sequence, so any split over threads gives the same bits; sums over the batch
// are taken afterwards in sequence order.
#pragma once

#include <cstdint>

#include "policy_loss/contract.h"

namespace oneshot::cpu {

// weights[b] = weight of one token of sequence b in the aggregated number.
void token_weights(const Normalizer&, const int64_t* lengths, int64_t batch, double* weights);

void policy_loss_rows(const PolicyInputs&, PolicySums* sums, int64_t begin, int64_t end);

// From the sums: the loss, kPolicyMetrics figures, and what the gradient needs of every sequence,
// weights [4, batch]: weight of a token's policy, KL and entropy term, and PolicySums::exponent.
// `count` is NaN when not given.
void policy_loss_total(const PolicyInputs&, double count, const PolicySums* sums, double* loss,
                       double* metrics, double* weights);

struct PolicyGradient {
  double grad_loss;
  const double* weights;  // [4, batch] of policy_loss_total
  void* by_logprobs;      // dense, in the layout and dtype of logprobs; nullptr: not wanted
  void* by_entropy;       // the same
};

void policy_loss_backward_rows(const PolicyInputs&, const PolicyGradient&, int64_t begin,
                               int64_t end);

void value_loss_rows(const ValueInputs&, ValueSums* sums, int64_t begin, int64_t end);
void value_loss_total(const ValueInputs&, const Normalizer&, const ValueSums* sums, double* loss,
                      double* metrics, double* weights);
// by_values: dense, in the layout and dtype of values.
void value_loss_backward_rows(const ValueInputs&, double grad_loss, const double* weights,
                              void* by_values, int64_t begin, int64_t end);

void importance_weights_rows(const WeightInputs&, WeightSums* sums, int64_t begin, int64_t end);
void importance_weights_total(const WeightInputs&, const WeightSums* sums, double* metrics);
// Divides the weights written before by `normalizer`.
void importance_weights_scale(const WeightInputs&, double normalizer, int64_t begin, int64_t end);

}  // namespace oneshot::cpu
