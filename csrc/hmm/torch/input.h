// The inputs of the `hmm` ops on either device, checked.
#pragma once

#include <initializer_list>

#include "hmm/contract.h"
#include "torch/tensors.h"

namespace oneshot {

// The tensors behind an HmmInput: views where the kernel can read them in place.
struct Potentials {
  Tensor log_init, log_trans, log_emit;
  OptionalTensor lengths, log_final;

  int64_t batch() const { return log_emit.size(0); }
  int64_t steps() const { return log_emit.size(1); }
  int64_t states() const { return log_emit.size(2); }
  bool homogeneous() const { return log_trans.size(1) == 1; }

  template <typename T>
  HmmInput<T> input() const {
    // 0 repeats what the batch, or all steps, share.
    const auto stride = [](const Tensor& t, int64_t dim) {
      return t.size(dim) == 1 ? 0 : t.stride(dim);
    };
    HmmInput<T> in;
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
    in.homogeneous = homogeneous();
    return in;
  }
};

// Sequences and steps may lie anywhere; the last `dims` dimensions must be dense.
inline Tensor dense_inside(const Tensor& t, int64_t dims) {
  int64_t expected = 1;
  for (int64_t d = t.dim() - 1; d >= t.dim() - dims; --d) {
    if (t.size(d) != 1 && t.stride(d) != expected) return dense(t);
    expected *= t.size(d);
  }
  return t;
}

inline void check_vector(On on, const Tensor& t, const char* name, const Tensor& log_emit) {
  check_like(on, t, name, log_emit, "log_emit");
  if (t.dim() != 2 || (t.size(0) != 1 && t.size(0) != log_emit.size(0)) ||
      t.size(1) != log_emit.size(2)) {
    fail(name, " must have the shape [1 or ", log_emit.size(0), ", ", log_emit.size(2), "], got ",
         shape_text(t));
  }
}

inline Potentials checked(On on, const Tensor& log_init, const Tensor& log_trans,
                          const Tensor& log_emit, const OptionalTensor& lengths,
                          const OptionalTensor& log_final) {
  check_float_or_double(on, log_emit, "log_emit");
  if (log_emit.dim() != 3 || log_emit.size(1) < 1 || log_emit.size(2) < 1) {
    fail("log_emit must have the shape [B, T, K] with T, K >= 1, got ", shape_text(log_emit));
  }
  const int64_t batch = log_emit.size(0), steps = log_emit.size(1), states = log_emit.size(2);
  check_vector(on, log_init, "log_init", log_emit);
  if (log_final) check_vector(on, *log_final, "log_final", log_emit);
  check_like(on, log_trans, "log_trans", log_emit, "log_emit");
  if (log_trans.dim() != 4 || (log_trans.size(0) != 1 && log_trans.size(0) != batch) ||
      (log_trans.size(1) != 1 && log_trans.size(1) != steps - 1) || log_trans.size(2) != states ||
      log_trans.size(3) != states) {
    fail("log_trans must have the shape [1 or ", batch, ", 1 or ", steps - 1, ", ", states, ", ",
         states, "], got ", shape_text(log_trans));
  }
  if (lengths) {
    check_beside(on, *lengths, "lengths", log_emit, "log_emit");
    check_dtype(*lengths, "lengths", ScalarType::Long, "int64");
    if (lengths->dim() != 1 || lengths->size(0) != batch) {
      fail("lengths must have the shape [", batch, "], got ", shape_text(*lengths));
    }
  }
  // The kernels on the GPU want adjacent steps, too.
  const int64_t more = on == On::kCuda ? 1 : 0;
  Potentials p{dense_inside(log_init, 1), dense_inside(log_trans, 2 + more),
               dense_inside(log_emit, 1 + more), dense(lengths), std::nullopt};
  if (log_final) p.log_final = dense_inside(*log_final, 1);
  if (on == On::kCuda) return p;  // what the lengths say is checked on the device
  const auto* all = data<int64_t>(p.lengths);
  const int64_t bad = hmm_bad_length(all, batch, steps);
  if (bad >= 0) {
    fail("lengths must lie in [0, ", steps, "], got ", all[bad], " for sequence ", bad);
  }
  return p;
}

inline void check_gradient(On on, const OptionalTensor& grad, const char* name,
                           const Tensor& log_emit, std::initializer_list<int64_t> sizes) {
  if (!grad) return;
  check_like(on, *grad, name, log_emit, "log_emit");
  bool same = grad->dim() == int64_t(sizes.size());
  int64_t d = 0;
  for (const int64_t size : sizes) same = same && grad->size(d++) == size;
  if (!same) fail(name, " must have the shape of its output, got ", shape_text(*grad));
}

// Upstream gradients of the outputs of hmm_posteriors, checked and dense.
struct UpstreamTensors {
  OptionalTensor log_likelihood, gamma, xi, xi_sum;

  UpstreamTensors(On on, const Potentials& p, const OptionalTensor& grad_log_likelihood,
                  const OptionalTensor& grad_gamma, const OptionalTensor& grad_xi,
                  const OptionalTensor& grad_xi_sum)
      : log_likelihood(dense(grad_log_likelihood)),
        gamma(dense(grad_gamma)),
        xi(dense(grad_xi)),
        xi_sum(dense(grad_xi_sum)) {
    const int64_t batch = p.batch(), steps = p.steps(), states = p.states();
    check_gradient(on, grad_log_likelihood, "grad_log_likelihood", p.log_emit, {batch});
    check_gradient(on, grad_gamma, "grad_gamma", p.log_emit, {batch, steps, states});
    check_gradient(on, grad_xi, "grad_xi", p.log_emit, {batch, steps - 1, states, states});
    check_gradient(on, grad_xi_sum, "grad_xi_sum", p.log_emit, {batch, states, states});
  }

  template <typename T>
  HmmUpstream<T> upstream() const {
    return {data<T>(log_likelihood), data<T>(gamma), data<T>(xi), data<T>(xi_sum)};
  }
};

// Gradients of the potentials, in their shapes; `final` is empty without log_final.
struct GradientTensors {
  Tensor init, trans, emit, final;

  explicit GradientTensors(const Potentials& p)
      : init(fresh(p.log_emit, {p.log_init.size(0), p.states()})),
        trans(
            fresh(p.log_emit, {p.log_trans.size(0), p.log_trans.size(1), p.states(), p.states()})),
        emit(fresh(p.log_emit, {p.batch(), p.steps(), p.states()})),
        final(p.log_final ? fresh(p.log_emit, {p.log_final->size(0), p.states()})
                          : nothing(p.log_emit)) {}

  template <typename T>
  HmmGradients<T> gradients(const Potentials& p) const {
    HmmGradients<T> out;
    out.init = mutable_data<T>(init);
    out.trans = mutable_data<T>(trans);
    out.emit = mutable_data<T>(emit);
    out.final = p.log_final ? mutable_data<T>(final) : nullptr;
    out.init_shared = p.log_init.size(0) == 1;
    out.final_shared = p.log_final && p.log_final->size(0) == 1;
    out.trans_shared = p.log_trans.size(0) == 1;
    out.trans_homogeneous = p.homogeneous();
    return out;
  }
};

inline void check_sampling(On on, const OptionalTensor& sequence_ids, int64_t num_samples,
                           const Tensor& log_emit) {
  if (num_samples < 1) fail("num_samples must be >= 1, got ", num_samples);
  if (!sequence_ids) return;
  check_beside(on, *sequence_ids, "sequence_ids", log_emit, "log_emit");
  check_dtype(*sequence_ids, "sequence_ids", ScalarType::Long, "int64");
  if (sequence_ids->dim() != 1 || sequence_ids->size(0) != log_emit.size(0)) {
    fail("sequence_ids must have the shape [", log_emit.size(0), "], got ",
         shape_text(*sequence_ids));
  }
}

}  // namespace oneshot
