// torch ops of the `hmm` family on CUDA tensors (stable ABI only).
#include "cuda/hmm.cuh"

#include <optional>
#include <tuple>

#include "torch/cuda_stream.h"
#include "torch/hmm_input.h"

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

Tensor output(const Tensor& like, std::initializer_list<int64_t> sizes) {
  return torch::stable::new_empty(like, sizes);
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
  const Tensor log_likelihood = output(log_emit, {batch});
  const Tensor gammas = gamma ? output(log_emit, {batch, steps, states}) : output(log_emit, {0});
  const Tensor xis =
      xi ? output(log_emit, {batch, steps - 1, states, states}) : output(log_emit, {0});
  const Tensor sums = xi_sum ? output(log_emit, {batch, states, states}) : output(log_emit, {0});
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
  const int64_t batch = p.batch(), steps = p.steps(), states = p.states();
  check_gradient(On::kCuda, grad_log_likelihood, "grad_log_likelihood", log_emit, {batch});
  check_gradient(On::kCuda, grad_gamma, "grad_gamma", log_emit, {batch, steps, states});
  check_gradient(On::kCuda, grad_xi, "grad_xi", log_emit, {batch, steps - 1, states, states});
  check_gradient(On::kCuda, grad_xi_sum, "grad_xi_sum", log_emit, {batch, states, states});
  const auto up_log_likelihood = dense(grad_log_likelihood), up_gamma = dense(grad_gamma);
  const auto up_xi = dense(grad_xi), up_xi_sum = dense(grad_xi_sum);
  const Tensor init = output(log_emit, {log_init.size(0), states});
  const Tensor trans = output(log_emit, {log_trans.size(0), log_trans.size(1), states, states});
  const Tensor emit = output(log_emit, {batch, steps, states});
  const Tensor final =
      log_final ? output(log_emit, {log_final->size(0), states}) : output(log_emit, {0});
  with_type(log_emit, [&](auto type) {
    using T = decltype(type);
    const auto in = p.input<T>();
    const cpu::HmmUpstream<T> up{data<T>(up_log_likelihood), data<T>(up_gamma), data<T>(up_xi),
                                 data<T>(up_xi_sum)};
    cpu::HmmGradients<T> out;
    out.init = mutable_data<T>(init);
    out.trans = mutable_data<T>(trans);
    out.emit = mutable_data<T>(emit);
    out.final = log_final ? mutable_data<T>(final) : nullptr;
    out.init_shared = log_init.size(0) == 1;
    out.final_shared = log_final && log_final->size(0) == 1;
    out.trans_shared = log_trans.size(0) == 1;
    out.trans_constant = log_trans.size(1) == 1;
    const Tensor workspace =
        device_bytes(log_emit, cuda::hmm_posteriors_backward_workspace(in, out));
    check_launch(
        cuda::hmm_posteriors_backward(in, up, out, workspace.mutable_data_ptr(), stream.get()),
        "hmm_posteriors_backward");
  });
  return {init, trans, emit, final};
}

std::tuple<Tensor, Tensor> hmm_viterbi(const Tensor& log_init, const Tensor& log_trans,
                                       const Tensor& log_emit, const OptionalTensor& lengths,
                                       const OptionalTensor& log_final) {
  const Potentials p = checked_on_device(log_init, log_trans, log_emit, lengths, log_final);
  const OnStreamOf stream(log_emit);
  const Tensor path = torch::stable::new_empty(log_emit, {p.batch(), p.steps()}, ScalarType::Long);
  const Tensor score = output(log_emit, {p.batch()});
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
