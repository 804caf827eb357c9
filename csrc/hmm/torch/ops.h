// torch ops of the `hmm` family, one body for both devices. `Device` runs the kernels of a call:
// hmm.cpp has the one of the CPU, hmm_cuda.cpp the one of a GPU.
#pragma once

#include <tuple>

#include "hmm/torch/input.h"

namespace oneshot {

template <typename Device>
struct HmmOps {
  static std::tuple<Tensor, Tensor, Tensor, Tensor> posteriors(const Tensor& log_init,
                                                               const Tensor& log_trans,
                                                               const Tensor& log_emit,
                                                               const OptionalTensor& lengths,
                                                               const OptionalTensor& log_final,
                                                               bool gamma, bool xi, bool xi_sum) {
    const Potentials p = checked(Device::kOn, log_init, log_trans, log_emit, lengths, log_final);
    const Device device(log_emit);
    const int64_t batch = p.batch(), steps = p.steps(), states = p.states();
    // Those that are not wanted are empty: outputs of one op must not share memory.
    const Tensor log_likelihood = fresh(log_emit, {batch});
    const Tensor gammas = gamma ? fresh(log_emit, {batch, steps, states}) : nothing(log_emit);
    const Tensor xis = xi ? fresh(log_emit, {batch, steps - 1, states, states}) : nothing(log_emit);
    const Tensor sums = xi_sum ? fresh(log_emit, {batch, states, states}) : nothing(log_emit);
    with_real_type(log_emit, [&](auto type) {
      using T = decltype(type);
      const HmmPosteriors<T> out{
          mutable_data<T>(log_likelihood), gamma ? mutable_data<T>(gammas) : nullptr,
          xi ? mutable_data<T>(xis) : nullptr, xi_sum ? mutable_data<T>(sums) : nullptr};
      device.posteriors(p.input<T>(), out);
    });
    return {log_likelihood, gammas, xis, sums};
  }

  static std::tuple<Tensor, Tensor, Tensor, Tensor> posteriors_backward(
      const OptionalTensor& grad_log_likelihood, const OptionalTensor& grad_gamma,
      const OptionalTensor& grad_xi, const OptionalTensor& grad_xi_sum, const Tensor& log_init,
      const Tensor& log_trans, const Tensor& log_emit, const OptionalTensor& lengths,
      const OptionalTensor& log_final) {
    const Potentials p = checked(Device::kOn, log_init, log_trans, log_emit, lengths, log_final);
    const Device device(log_emit);
    const UpstreamTensors up(Device::kOn, p, grad_log_likelihood, grad_gamma, grad_xi, grad_xi_sum);
    const GradientTensors grads(p);
    with_real_type(log_emit, [&](auto type) {
      using T = decltype(type);
      device.posteriors_backward(p.input<T>(), up.upstream<T>(), grads.gradients<T>(p));
    });
    return {grads.init, grads.trans, grads.emit, grads.final};
  }

  static std::tuple<Tensor, Tensor> viterbi(const Tensor& log_init, const Tensor& log_trans,
                                            const Tensor& log_emit, const OptionalTensor& lengths,
                                            const OptionalTensor& log_final) {
    const Potentials p = checked(Device::kOn, log_init, log_trans, log_emit, lengths, log_final);
    const Device device(log_emit);
    const Tensor path = fresh(log_emit, {p.batch(), p.steps()}, ScalarType::Long);
    const Tensor score = fresh(log_emit, {p.batch()});
    with_real_type(log_emit, [&](auto type) {
      using T = decltype(type);
      device.viterbi(p.input<T>(), mutable_data<int64_t>(path), mutable_data<T>(score));
    });
    return {path, score};
  }

  static Tensor sample(const Tensor& log_init, const Tensor& log_trans, const Tensor& log_emit,
                       const OptionalTensor& lengths, const OptionalTensor& log_final,
                       const OptionalTensor& sequence_ids, int64_t num_samples, int64_t seed) {
    const Potentials p = checked(Device::kOn, log_init, log_trans, log_emit, lengths, log_final);
    check_sampling(Device::kOn, sequence_ids, num_samples, log_emit);
    const Device device(log_emit);
    const OptionalTensor ids = dense(sequence_ids);
    const Tensor paths = fresh(log_emit, {num_samples, p.batch(), p.steps()}, ScalarType::Long);
    with_real_type(log_emit, [&](auto type) {
      using T = decltype(type);
      const HmmSampling how{data<int64_t>(ids), num_samples, uint64_t(seed)};
      device.sample(p.input<T>(), how, mutable_data<int64_t>(paths));
    });
    return paths;
  }
};

template <typename Device, typename Library>
void register_hmm(Library& m) {
  m.impl("hmm_posteriors", TORCH_BOX(&HmmOps<Device>::posteriors));
  m.impl("hmm_posteriors_backward", TORCH_BOX(&HmmOps<Device>::posteriors_backward));
  m.impl("hmm_viterbi", TORCH_BOX(&HmmOps<Device>::viterbi));
  m.impl("hmm_sample", TORCH_BOX(&HmmOps<Device>::sample));
}

}  // namespace oneshot
