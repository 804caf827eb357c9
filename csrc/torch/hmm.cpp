// torch ops of the `hmm` family on CPU tensors (stable ABI only).
#include "cpu/hmm.h"

#include <optional>
#include <tuple>

#include "torch/hmm_tensors.h"
#include "torch/huge_pages.h"

namespace oneshot {
namespace {

// The tensors behind an HmmInput: views where the kernel can read them in place.
struct Potentials {
  Tensor log_init, log_trans, log_emit;
  std::optional<Tensor> lengths, log_final;

  int64_t batch() const { return log_emit.size(0); }
  int64_t steps() const { return log_emit.size(1); }
  int64_t states() const { return log_emit.size(2); }
  bool constant_trans() const { return log_trans.size(1) == 1; }

  template <typename T>
  cpu::HmmInput<T> input() const {
    // 0 repeats what the batch, or all steps, share.
    const auto stride = [](const Tensor& t, int64_t dim) {
      return t.size(dim) == 1 ? 0 : t.stride(dim);
    };
    cpu::HmmInput<T> in;
    in.log_init = data<T>(log_init);
    in.log_trans = data<T>(log_trans);
    in.log_emit = data<T>(log_emit);
    in.log_final = data<T>(log_final);
    in.lengths = data<int64_t>(lengths);
    in.batch = batch(), in.steps = steps(), in.states = states();
    in.init_stride = stride(log_init, 0);
    in.final_stride = log_final ? stride(*log_final, 0) : 0;
    in.trans_batch_stride = stride(log_trans, 0);
    in.trans_step_stride = stride(log_trans, 1);
    in.emit_batch_stride = stride(log_emit, 0);
    in.emit_step_stride = stride(log_emit, 1);
    in.constant_trans = constant_trans();
    return in;
  }
};

// Sequences and steps may lie anywhere; the last `dims` dimensions must be dense.
Tensor dense_inside(const Tensor& t, int64_t dims) {
  int64_t expected = 1;
  for (int64_t d = t.dim() - 1; d >= t.dim() - dims; --d) {
    if (t.size(d) != 1 && t.stride(d) != expected) return torch::stable::contiguous(t);
    expected *= t.size(d);
  }
  return t;
}

void check_vector(const Tensor& t, const char* name, const Tensor& log_emit) {
  check_like(t, name, log_emit, "log_emit");
  if (t.dim() != 2 || (t.size(0) != 1 && t.size(0) != log_emit.size(0)) ||
      t.size(1) != log_emit.size(2)) {
    fail(name, " must have the shape [1 or ", log_emit.size(0), ", ", log_emit.size(2), "], got ",
         shape_text(t));
  }
}

Potentials checked(const Tensor& log_init, const Tensor& log_trans, const Tensor& log_emit,
                   const std::optional<Tensor>& lengths, const std::optional<Tensor>& log_final) {
  check_float_or_double(log_emit, "log_emit");
  if (log_emit.dim() != 3 || log_emit.size(1) < 1 || log_emit.size(2) < 1) {
    fail("log_emit must have the shape [B, T, K] with T, K >= 1, got ", shape_text(log_emit));
  }
  const int64_t batch = log_emit.size(0), steps = log_emit.size(1), states = log_emit.size(2);
  check_vector(log_init, "log_init", log_emit);
  if (log_final) check_vector(*log_final, "log_final", log_emit);
  check_like(log_trans, "log_trans", log_emit, "log_emit");
  if (log_trans.dim() != 4 || (log_trans.size(0) != 1 && log_trans.size(0) != batch) ||
      (log_trans.size(1) != 1 && log_trans.size(1) != steps - 1) || log_trans.size(2) != states ||
      log_trans.size(3) != states) {
    fail("log_trans must have the shape [1 or ", batch, ", 1 or ", steps - 1, ", ", states, ", ",
         states, "], got ", shape_text(log_trans));
  }
  if (lengths) {
    check_cpu(*lengths, "lengths");
    check_dtype(*lengths, "lengths", ScalarType::Long, "int64");
    if (lengths->dim() != 1 || lengths->size(0) != batch) {
      fail("lengths must have the shape [", batch, "], got ", shape_text(*lengths));
    }
  }
  Potentials p{dense_inside(log_init, 1), dense_inside(log_trans, 2), dense_inside(log_emit, 1),
               dense(lengths), std::nullopt};
  if (log_final) p.log_final = dense_inside(*log_final, 1);
  const auto* all = data<int64_t>(p.lengths);
  const int64_t bad = cpu::hmm_bad_length(all, batch, steps);
  if (bad >= 0) {
    fail("lengths must lie in [0, ", steps, "], got ", all[bad], " for sequence ", bad);
  }
  return p;
}

// Calls body(T()) with the element type of the tensors.
template <typename Body>
void with_type(const Tensor& t, const Body& body) {
  if (t.scalar_type() == ScalarType::Float) {
    body(float());
  } else {
    body(double());
  }
}

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
  const Potentials p = checked(log_init, log_trans, log_emit, lengths, log_final);
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

void check_gradient(const std::optional<Tensor>& grad, const char* name, const Tensor& log_emit,
                    std::initializer_list<int64_t> sizes) {
  if (!grad) return;
  check_like(*grad, name, log_emit, "log_emit");
  bool same = grad->dim() == int64_t(sizes.size());
  int64_t d = 0;
  for (const int64_t size : sizes) same = same && grad->size(d++) == size;
  if (!same) fail(name, " must have the shape of its output, got ", shape_text(*grad));
}

std::tuple<Tensor, Tensor, Tensor, Tensor> hmm_posteriors_backward(
    const std::optional<Tensor>& grad_log_likelihood, const std::optional<Tensor>& grad_gamma,
    const std::optional<Tensor>& grad_xi, const std::optional<Tensor>& grad_xi_sum,
    const Tensor& log_init, const Tensor& log_trans, const Tensor& log_emit,
    const std::optional<Tensor>& lengths, const std::optional<Tensor>& log_final) {
  const Potentials p = checked(log_init, log_trans, log_emit, lengths, log_final);
  const int64_t batch = p.batch(), steps = p.steps(), states = p.states();
  check_gradient(grad_log_likelihood, "grad_log_likelihood", log_emit, {batch});
  check_gradient(grad_gamma, "grad_gamma", log_emit, {batch, steps, states});
  check_gradient(grad_xi, "grad_xi", log_emit, {batch, steps - 1, states, states});
  check_gradient(grad_xi_sum, "grad_xi_sum", log_emit, {batch, states, states});
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
  const Potentials p = checked(log_init, log_trans, log_emit, lengths, log_final);
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
  const Potentials p = checked(log_init, log_trans, log_emit, lengths, log_final);
  if (num_samples < 1) fail("num_samples must be >= 1, got ", num_samples);
  if (sequence_ids) {
    check_cpu(*sequence_ids, "sequence_ids");
    check_dtype(*sequence_ids, "sequence_ids", ScalarType::Long, "int64");
    if (sequence_ids->dim() != 1 || sequence_ids->size(0) != p.batch()) {
      fail("sequence_ids must have the shape [", p.batch(), "], got ", shape_text(*sequence_ids));
    }
  }
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
