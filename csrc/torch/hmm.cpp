// torch ops of the `hmm` family on CPU tensors (stable ABI only).
#include "cpu/hmm.h"

#include <optional>
#include <tuple>

#include "torch/hmm_input.h"
#include "torch/huge_pages.h"

namespace oneshot {
namespace {

Tensor output(const Tensor& like, std::initializer_list<int64_t> sizes) {
  Tensor t = torch::stable::new_empty(like, sizes);
  prefer_huge_pages(t.mutable_data_ptr(), t.numel() * int64_t(t.element_size()));
  return t;
}

std::tuple<Tensor, Tensor, Tensor, Tensor> hmm_posteriors(const Tensor& log_init,
                                                          const Tensor& log_trans,
                                                          const Tensor& log_emit,
                                                          const std::optional<Tensor>& lengths,
                                                          const std::optional<Tensor>& log_final,
                                                          bool gamma, bool xi, bool xi_sum) {
  const Potentials p = checked(On::kCpu, log_init, log_trans, log_emit, lengths, log_final);
  const int64_t batch = p.batch(), steps = p.steps(), states = p.states();
  const Tensor log_likelihood = output(log_emit, {batch}), none = output(log_emit, {0});
  const Tensor gammas = gamma ? output(log_emit, {batch, steps, states}) : none;
  const Tensor xis = xi ? output(log_emit, {batch, steps - 1, states, states}) : none;
  const Tensor sums = xi_sum ? output(log_emit, {batch, states, states}) : none;
  with_type(log_emit, [&](auto type) {
    using T = decltype(type);
    const cpu::HmmPosteriors<T> out{
        mutable_data<T>(log_likelihood), gamma ? mutable_data<T>(gammas) : nullptr,
        xi ? mutable_data<T>(xis) : nullptr, xi_sum ? mutable_data<T>(sums) : nullptr};
    cpu::hmm_posteriors(p.input<T>(), out, torch_workers());
  });
  // Outputs of one op must not share memory.
  return {log_likelihood, gammas, xi ? xis : output(log_emit, {0}),
          xi_sum ? sums : output(log_emit, {0})};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> hmm_posteriors_backward(
    const std::optional<Tensor>& grad_log_likelihood, const std::optional<Tensor>& grad_gamma,
    const std::optional<Tensor>& grad_xi, const std::optional<Tensor>& grad_xi_sum,
    const Tensor& log_init, const Tensor& log_trans, const Tensor& log_emit,
    const std::optional<Tensor>& lengths, const std::optional<Tensor>& log_final) {
  const Potentials p = checked(On::kCpu, log_init, log_trans, log_emit, lengths, log_final);
  const int64_t batch = p.batch(), steps = p.steps(), states = p.states();
  check_gradient(On::kCpu, grad_log_likelihood, "grad_log_likelihood", log_emit, {batch});
  check_gradient(On::kCpu, grad_gamma, "grad_gamma", log_emit, {batch, steps, states});
  check_gradient(On::kCpu, grad_xi, "grad_xi", log_emit, {batch, steps - 1, states, states});
  check_gradient(On::kCpu, grad_xi_sum, "grad_xi_sum", log_emit, {batch, states, states});
  const auto up_log_likelihood = dense(grad_log_likelihood), up_gamma = dense(grad_gamma);
  const auto up_xi = dense(grad_xi), up_xi_sum = dense(grad_xi_sum);
  const Tensor init = output(log_emit, {log_init.size(0), states});
  const Tensor trans = output(log_emit, {log_trans.size(0), log_trans.size(1), states, states});
  const Tensor emit = output(log_emit, {batch, steps, states});
  const Tensor final =
      log_final ? output(log_emit, {log_final->size(0), states}) : output(log_emit, {0});
  with_type(log_emit, [&](auto type) {
    using T = decltype(type);
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
    cpu::hmm_posteriors_backward(p.input<T>(), up, out, torch_workers());
  });
  return {init, trans, emit, final};
}

std::tuple<Tensor, Tensor> hmm_viterbi(const Tensor& log_init, const Tensor& log_trans,
                                       const Tensor& log_emit, const std::optional<Tensor>& lengths,
                                       const std::optional<Tensor>& log_final) {
  const Potentials p = checked(On::kCpu, log_init, log_trans, log_emit, lengths, log_final);
  const Tensor path = torch::stable::new_empty(log_emit, {p.batch(), p.steps()}, ScalarType::Long);
  const Tensor score = output(log_emit, {p.batch()});
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
