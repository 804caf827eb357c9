// torch ops of the `hmm` family on CUDA tensors (stable ABI only).
#include "hmm/cuda/hmm.cuh"

#include <optional>
#include <tuple>

#include "hmm/torch/input.h"
#include "torch/cuda_stream.h"

namespace oneshot {
namespace {

using OptionalTensor = std::optional<Tensor>;

Potentials checked_on_device(const Tensor& log_init, const Tensor& log_trans,
                             const Tensor& log_emit, const OptionalTensor& lengths,
                             const OptionalTensor& log_final) {
  check_on(On::kCuda, log_emit, "log_emit");
  check_cuda(log_init, "log_init", log_emit, "log_emit");
  check_cuda(log_trans, "log_trans", log_emit, "log_emit");
  if (lengths) check_cuda(*lengths, "lengths", log_emit, "log_emit");
  if (log_final) check_cuda(*log_final, "log_final", log_emit, "log_emit");
  return checked(On::kCuda, log_init, log_trans, log_emit, lengths, log_final);
}

std::tuple<Tensor, Tensor, Tensor, Tensor> hmm_posteriors(const Tensor& log_init,
                                                          const Tensor& log_trans,
                                                          const Tensor& log_emit,
                                                          const OptionalTensor& lengths,
                                                          const OptionalTensor& log_final,
                                                          bool gamma, bool xi, bool xi_sum) {
  const Potentials p = checked_on_device(log_init, log_trans, log_emit, lengths, log_final);
  const OnStreamOf stream(log_emit);
  const int64_t batch = p.batch(), steps = p.steps(), states = p.states();
  const Tensor log_likelihood = output(On::kCuda, log_emit, {batch});
  const Tensor gammas = gamma ? output(On::kCuda, log_emit, {batch, steps, states})
                              : output(On::kCuda, log_emit, {0});
  const Tensor xis = xi ? output(On::kCuda, log_emit, {batch, steps - 1, states, states})
                        : output(On::kCuda, log_emit, {0});
  const Tensor sums = xi_sum ? output(On::kCuda, log_emit, {batch, states, states})
                             : output(On::kCuda, log_emit, {0});
  with_type(log_emit, [&](auto type) {
    using T = decltype(type);
    const auto in = p.input<T>();
    const cpu::HmmPosteriors<T> out{
        mutable_data<T>(log_likelihood), gamma ? mutable_data<T>(gammas) : nullptr,
        xi ? mutable_data<T>(xis) : nullptr, xi_sum ? mutable_data<T>(sums) : nullptr};
    const Tensor workspace = device_bytes(log_emit, cuda::hmm_posteriors_workspace(in, out));
    check_launch(cuda::hmm_posteriors(in, out, workspace.mutable_data_ptr(), stream.get()),
                 "hmm_posteriors");
  });
  return {log_likelihood, gammas, xis, sums};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> hmm_posteriors_backward(
    const OptionalTensor& grad_log_likelihood, const OptionalTensor& grad_gamma,
    const OptionalTensor& grad_xi, const OptionalTensor& grad_xi_sum, const Tensor& log_init,
    const Tensor& log_trans, const Tensor& log_emit, const OptionalTensor& lengths,
    const OptionalTensor& log_final) {
  const Potentials p = checked_on_device(log_init, log_trans, log_emit, lengths, log_final);
  const OnStreamOf stream(log_emit);
  const UpstreamTensors up(On::kCuda, p, grad_log_likelihood, grad_gamma, grad_xi, grad_xi_sum);
  const GradientTensors grads(On::kCuda, p);
  with_type(log_emit, [&](auto type) {
    using T = decltype(type);
    const auto in = p.input<T>();
    const auto out = grads.gradients<T>(p);
    const Tensor workspace =
        device_bytes(log_emit, cuda::hmm_posteriors_backward_workspace(in, out));
    check_launch(cuda::hmm_posteriors_backward(in, up.upstream<T>(), out,
                                               workspace.mutable_data_ptr(), stream.get()),
                 "hmm_posteriors_backward");
  });
  return {grads.init, grads.trans, grads.emit, grads.final};
}

std::tuple<Tensor, Tensor> hmm_viterbi(const Tensor& log_init, const Tensor& log_trans,
                                       const Tensor& log_emit, const OptionalTensor& lengths,
                                       const OptionalTensor& log_final) {
  const Potentials p = checked_on_device(log_init, log_trans, log_emit, lengths, log_final);
  const OnStreamOf stream(log_emit);
  const Tensor path = torch::stable::new_empty(log_emit, {p.batch(), p.steps()}, ScalarType::Long);
  const Tensor score = output(On::kCuda, log_emit, {p.batch()});
  with_type(log_emit, [&](auto type) {
    using T = decltype(type);
    const auto in = p.input<T>();
    const Tensor workspace = device_bytes(log_emit, cuda::hmm_viterbi_workspace(in));
    check_launch(cuda::hmm_viterbi(in, mutable_data<int64_t>(path), mutable_data<T>(score),
                                   workspace.mutable_data_ptr(), stream.get()),
                 "hmm_viterbi");
  });
  return {path, score};
}

Tensor hmm_sample(const Tensor& log_init, const Tensor& log_trans, const Tensor& log_emit,
                  const OptionalTensor& lengths, const OptionalTensor& log_final,
                  const OptionalTensor& sequence_ids, int64_t num_samples, int64_t seed) {
  const Potentials p = checked_on_device(log_init, log_trans, log_emit, lengths, log_final);
  check_sampling(On::kCuda, sequence_ids, num_samples, p.batch());
  const OnStreamOf stream(log_emit);
  const auto ids = dense(sequence_ids);
  const Tensor paths =
      torch::stable::new_empty(log_emit, {num_samples, p.batch(), p.steps()}, ScalarType::Long);
  with_type(log_emit, [&](auto type) {
    using T = decltype(type);
    const auto in = p.input<T>();
    const cpu::HmmSampling how{data<int64_t>(ids), num_samples, uint64_t(seed)};
    const Tensor workspace = device_bytes(log_emit, cuda::hmm_sample_workspace(in));
    check_launch(cuda::hmm_sample(in, how, mutable_data<int64_t>(paths),
                                  workspace.mutable_data_ptr(), stream.get()),
                 "hmm_sample");
  });
  return paths;
}

}  // namespace
}  // namespace oneshot

STABLE_TORCH_LIBRARY_IMPL(oneshot, CUDA, m) {
  m.impl("hmm_posteriors", TORCH_BOX(&oneshot::hmm_posteriors));
  m.impl("hmm_posteriors_backward", TORCH_BOX(&oneshot::hmm_posteriors_backward));
  m.impl("hmm_viterbi", TORCH_BOX(&oneshot::hmm_viterbi));
  m.impl("hmm_sample", TORCH_BOX(&oneshot::hmm_sample));
}
