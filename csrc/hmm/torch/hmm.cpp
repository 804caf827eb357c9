// torch ops of the `hmm` family on CPU tensors (stable ABI only).
#include "hmm/contract.h"

#include <optional>
#include <tuple>

#include "hmm/torch/input.h"

namespace oneshot {
namespace {

std::tuple<Tensor, Tensor, Tensor, Tensor> hmm_posteriors(const Tensor& log_init,
                                                          const Tensor& log_trans,
                                                          const Tensor& log_emit,
                                                          const std::optional<Tensor>& lengths,
                                                          const std::optional<Tensor>& log_final,
                                                          bool gamma, bool xi, bool xi_sum) {
  const Potentials p = checked(On::kCpu, log_init, log_trans, log_emit, lengths, log_final);
  const int64_t batch = p.batch(), steps = p.steps(), states = p.states();
  const Tensor log_likelihood = output(On::kCpu, log_emit, {batch}),
               none = output(On::kCpu, log_emit, {0});
  const Tensor gammas = gamma ? output(On::kCpu, log_emit, {batch, steps, states}) : none;
  const Tensor xis = xi ? output(On::kCpu, log_emit, {batch, steps - 1, states, states}) : none;
  const Tensor sums = xi_sum ? output(On::kCpu, log_emit, {batch, states, states}) : none;
  with_type(log_emit, [&](auto type) {
    using T = decltype(type);
    const cpu::HmmPosteriors<T> out{
        mutable_data<T>(log_likelihood), gamma ? mutable_data<T>(gammas) : nullptr,
        xi ? mutable_data<T>(xis) : nullptr, xi_sum ? mutable_data<T>(sums) : nullptr};
    cpu::hmm_posteriors(p.input<T>(), out, torch_workers());
  });
  // Outputs of one op must not share memory.
  return {log_likelihood, gammas, xi ? xis : output(On::kCpu, log_emit, {0}),
          xi_sum ? sums : output(On::kCpu, log_emit, {0})};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> hmm_posteriors_backward(
    const std::optional<Tensor>& grad_log_likelihood, const std::optional<Tensor>& grad_gamma,
    const std::optional<Tensor>& grad_xi, const std::optional<Tensor>& grad_xi_sum,
    const Tensor& log_init, const Tensor& log_trans, const Tensor& log_emit,
    const std::optional<Tensor>& lengths, const std::optional<Tensor>& log_final) {
  const Potentials p = checked(On::kCpu, log_init, log_trans, log_emit, lengths, log_final);
  const UpstreamTensors up(On::kCpu, p, grad_log_likelihood, grad_gamma, grad_xi, grad_xi_sum);
  const GradientTensors grads(On::kCpu, p);
  with_type(log_emit, [&](auto type) {
    using T = decltype(type);
    cpu::hmm_posteriors_backward(p.input<T>(), up.upstream<T>(), grads.gradients<T>(p),
                                 torch_workers());
  });
  return {grads.init, grads.trans, grads.emit, grads.final};
}

std::tuple<Tensor, Tensor> hmm_viterbi(const Tensor& log_init, const Tensor& log_trans,
                                       const Tensor& log_emit, const std::optional<Tensor>& lengths,
                                       const std::optional<Tensor>& log_final) {
  const Potentials p = checked(On::kCpu, log_init, log_trans, log_emit, lengths, log_final);
  const Tensor path = torch::stable::new_empty(log_emit, {p.batch(), p.steps()}, ScalarType::Long);
  const Tensor score = output(On::kCpu, log_emit, {p.batch()});
  with_type(log_emit, [&](auto type) {
    using T = decltype(type);
    cpu::hmm_viterbi(p.input<T>(), mutable_data<int64_t>(path), mutable_data<T>(score),
                     torch_workers());
  });
  return {path, score};
}

Tensor hmm_sample(const Tensor& log_init, const Tensor& log_trans, const Tensor& log_emit,
                  const std::optional<Tensor>& lengths, const std::optional<Tensor>& log_final,
                  const std::optional<Tensor>& sequence_ids, int64_t num_samples, int64_t seed) {
  const Potentials p = checked(On::kCpu, log_init, log_trans, log_emit, lengths, log_final);
  check_sampling(On::kCpu, sequence_ids, num_samples, p.batch());
  const auto ids = dense(sequence_ids);
  const Tensor paths =
      torch::stable::new_empty(log_emit, {num_samples, p.batch(), p.steps()}, ScalarType::Long);
  with_type(log_emit, [&](auto type) {
    using T = decltype(type);
    cpu::hmm_sample(p.input<T>(), {data<int64_t>(ids), num_samples, uint64_t(seed)},
                    mutable_data<int64_t>(paths), torch_workers());
  });
  return paths;
}

}  // namespace
}  // namespace oneshot

STABLE_TORCH_LIBRARY_IMPL(oneshot, CPU, m) {
  m.impl("hmm_posteriors", TORCH_BOX(&oneshot::hmm_posteriors));
  m.impl("hmm_posteriors_backward", TORCH_BOX(&oneshot::hmm_posteriors_backward));
  m.impl("hmm_viterbi", TORCH_BOX(&oneshot::hmm_viterbi));
  m.impl("hmm_sample", TORCH_BOX(&oneshot::hmm_sample));
}
