// How the tensors of the `logprob` family become the pointers of its kernels, on either device.
#pragma once

#include <vector>

#include "logprob/contract.h"
#include "torch/tensors.h"

namespace oneshot {

// The leading dimensions of `t`, seen with the sizes of `shape` (size 1 broadcasts); false when
// the kernel cannot walk them in place.
inline bool rows_of(const Tensor& t, const Tensor& shape, Rows& rows) {
  if (t.size(t.dim() - 1) > 1 && t.stride(t.dim() - 1) != 1) return false;
  rows = Rows();
  const int64_t missing = shape.dim() - t.dim();
  for (int64_t d = 0; d + 1 < shape.dim(); ++d) {
    const bool repeats = d < missing || t.size(d - missing) != shape.size(d);
    if (!rows.push(shape.size(d), repeats ? 0 : t.stride(d - missing))) return false;
  }
  return true;
}

inline Tensor with_walkable_rows(const Tensor& t, const Tensor& shape, Rows& rows) {
  if (rows_of(t, shape, rows)) return t;
  const Tensor copy = dense(t);
  if (!rows_of(copy, shape, rows)) fail("tensors of ", shape.dim(), " dimensions do not fit");
  return copy;
}

inline int64_t row_count(const Tensor& logits) {
  int64_t rows = 1;
  for (int64_t d = 0; d + 1 < logits.dim(); ++d) rows *= logits.size(d);
  return rows;
}

inline std::vector<int64_t> leading_sizes(const Tensor& logits) {
  std::vector<int64_t> sizes;
  for (int64_t d = 0; d + 1 < logits.dim(); ++d) sizes.push_back(logits.size(d));
  return sizes;
}

inline void check_leading(const Tensor& t, const char* name, const Tensor& logits, int64_t dims) {
  bool same = t.dim() == dims;
  for (int64_t d = 0; same && d + 1 < logits.dim(); ++d) same = t.size(d) == logits.size(d);
  if (!same) {
    fail(name, " must have the leading shape of logits ", shape_text(logits), ", got ",
         shape_text(t));
  }
}

// The tensors a kernel call points into: views of the caller's where possible.
struct Input {
  Tensor logits, targets;
  OptionalTensor mask, keep_mask;
  LogprobInput pointers{};
};

inline Input make_input(On on, const Tensor& logits, const Tensor& targets,
                        const OptionalTensor& mask, const OptionalTensor& keep_mask,
                        double temperature) {
  check_on(on, logits, "logits");
  check_on(on, targets, "targets");
  if (logits.dim() < 1 || logits.size(logits.dim() - 1) < 1) {
    fail("logits must have shape [..., vocabulary] with at least one token, got ",
         shape_text(logits));
  }
  check_dtype(targets, "targets", ScalarType::Long, "int64");
  const bool one_each = targets.dim() == logits.dim() - 1;
  check_leading(targets, "targets", logits, one_each ? logits.dim() - 1 : logits.dim());
  if (!(temperature > 0.0)) fail("temperature must be positive, got ", temperature);
  Input in{logits, dense(targets), std::nullopt, std::nullopt};
  in.pointers.dtype = dtype_of(logits, "logits");
  in.logits = with_walkable_rows(logits, logits, in.pointers.rows);
  in.pointers.logits = in.logits.const_data_ptr();
  in.pointers.vocab = logits.size(logits.dim() - 1);
  in.pointers.targets = data<int64_t>(in.targets);
  in.pointers.targets_per_row = one_each ? 1 : targets.size(targets.dim() - 1);
  in.pointers.temperature = temperature;
  if (mask) {
    check_on(on, *mask, "mask");
    check_dtype(*mask, "mask", ScalarType::Bool, "bool");
    check_leading(*mask, "mask", logits, logits.dim() - 1);
    in.mask = dense(*mask);
    in.pointers.mask = mask_pointer(*in.mask);
  }
  if (keep_mask) {
    check_on(on, *keep_mask, "keep_mask");
    check_dtype(*keep_mask, "keep_mask", ScalarType::Bool, "bool");
    bool fits = keep_mask->dim() >= 1 && keep_mask->dim() <= logits.dim();
    for (int64_t d = 1; fits && d <= keep_mask->dim(); ++d) {
      const int64_t size = keep_mask->size(keep_mask->dim() - d);
      fits = size == logits.size(logits.dim() - d) || (d > 1 && size == 1);
    }
    if (!fits) {
      fail("keep_mask must have the vocabulary of logits ", shape_text(logits),
           " and leading dimensions that broadcast to it, got ", shape_text(*keep_mask));
    }
    in.keep_mask = with_walkable_rows(*keep_mask, logits, in.pointers.keep_rows);
    in.pointers.keep_mask = mask_pointer(*in.keep_mask);
  }
  return in;
}

// An upstream gradient as the kernel wants it: dense, in the dtype of the results, or absent.
inline const void* gradient_pointer(On on, const OptionalTensor& grad, const char* name,
                                    const Tensor& logits, const Tensor& like,
                                    OptionalTensor& keep_alive) {
  if (!grad) return nullptr;
  check_on(on, *grad, name);
  check_dtype(*grad, name, real_type(logits), "the dtype of the results");
  if (grad->numel() != like.numel()) {
    fail(name, " must have the shape ", shape_text(like), ", got ", shape_text(*grad));
  }
  keep_alive = dense(*grad);
  return keep_alive->const_data_ptr();
}

// Checks what backward gets and puts its pointers together.
struct BackwardInput {
  Tensor logprobs, stats;
  OptionalTensor grad_logprobs, grad_entropy;
  LogprobBackward pointers{};
};

inline BackwardInput make_backward(On on, const OptionalTensor& grad_logprobs,
                                   const OptionalTensor& grad_entropy, const Input& in,
                                   const Tensor& logprobs, const Tensor& stats, void* grad_logits,
                                   const Rows& grad_rows) {
  const int64_t rows = row_count(in.logits);
  check_dtype(logprobs, "logprobs", real_type(in.logits), "the dtype of the results");
  check_dtype(stats, "stats", real_type(in.logits), "the dtype of the results");
  check_same_shape(logprobs, "logprobs", in.targets, "targets");
  if (stats.numel() != rows * kLogprobStats) {
    fail("stats must hold ", kLogprobStats, " numbers a row, got ", shape_text(stats));
  }
  BackwardInput b{dense(logprobs), dense(stats), std::nullopt, std::nullopt};
  b.pointers.input = in.pointers;
  b.pointers.grad_logprobs =
      gradient_pointer(on, grad_logprobs, "grad_logprobs", in.logits, logprobs, b.grad_logprobs);
  if (grad_entropy) {
    check_leading(*grad_entropy, "grad_entropy", in.logits, in.logits.dim() - 1);
    b.pointers.grad_entropy = gradient_pointer(on, grad_entropy, "grad_entropy", in.logits,
                                               *grad_entropy, b.grad_entropy);
  }
  b.pointers.logprobs = b.logprobs.const_data_ptr();
  b.pointers.stats = b.stats.const_data_ptr();
  b.pointers.grad_logits = grad_logits;
  b.pointers.grad_rows = grad_rows;
  return b;
}

// The gradient may be written over logits whose rows the kernel walks in place.
inline void check_overwritable(const Input& in, const Tensor& logits) {
  bool overlaps = false;
  for (int d = 0; d < in.pointers.rows.dims; ++d) {
    overlaps = overlaps || in.pointers.rows.stride[d] == 0;
  }
  if (in.pointers.logits != logits.const_data_ptr() || overlaps) {
    fail(
        "logits must have adjacent vocabulary entries and rows of their own to be overwritten "
        "by their gradient");
  }
}

}  // namespace oneshot
