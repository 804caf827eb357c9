// torch ops of the `logprob` family on CPU tensors (stable ABI only).
#include "cpu/logprob.h"

#include <algorithm>
#include <atomic>
#include <optional>
#include <tuple>
#include <vector>

#include "torch/checks.h"
#include "torch/huge_pages.h"

namespace oneshot {
namespace {

ScalarType real_type(const Tensor& logits) {
  return logits.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

// The leading dimensions of `t`, seen with the sizes of `shape` (size 1 broadcasts); false when
// the kernel cannot walk them in place.
bool rows_of(const Tensor& t, const Tensor& shape, Rows& rows) {
  if (t.size(t.dim() - 1) > 1 && t.stride(t.dim() - 1) != 1) return false;
  rows = Rows();
  const int64_t missing = shape.dim() - t.dim();
  for (int64_t d = 0; d + 1 < shape.dim(); ++d) {
    const bool repeats = d < missing || t.size(d - missing) != shape.size(d);
    if (!rows.push(shape.size(d), repeats ? 0 : t.stride(d - missing))) return false;
  }
  return true;
}

Tensor with_walkable_rows(const Tensor& t, const Tensor& shape, Rows& rows) {
  if (rows_of(t, shape, rows)) return t;
  const Tensor dense = torch::stable::contiguous(t);
  if (!rows_of(dense, shape, rows)) fail("tensors of ", shape.dim(), " dimensions do not fit");
  return dense;
}

int64_t row_count(const Tensor& logits) {
  int64_t rows = 1;
  for (int64_t d = 0; d + 1 < logits.dim(); ++d) rows *= logits.size(d);
  return rows;
}

std::vector<int64_t> leading_sizes(const Tensor& logits) {
  std::vector<int64_t> sizes;
  for (int64_t d = 0; d + 1 < logits.dim(); ++d) sizes.push_back(logits.size(d));
  return sizes;
}

void check_leading(const Tensor& t, const char* name, const Tensor& logits, int64_t dims) {
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
  std::optional<Tensor> mask, keep_mask;
  cpu::LogprobInput pointers{};
};

Input make_input(const Tensor& logits, const Tensor& targets, const std::optional<Tensor>& mask,
                 const std::optional<Tensor>& keep_mask, double temperature) {
  check_cpu(logits, "logits");
  check_cpu(targets, "targets");
  if (logits.dim() < 1 || logits.size(logits.dim() - 1) < 1) {
    fail("logits must have shape [..., vocabulary] with at least one token, got ",
         shape_text(logits));
  }
  check_dtype(targets, "targets", ScalarType::Long, "int64");
  const bool one_each = targets.dim() == logits.dim() - 1;
  check_leading(targets, "targets", logits, one_each ? logits.dim() - 1 : logits.dim());
  if (!(temperature > 0.0)) fail("temperature must be positive, got ", temperature);
  Input in{logits, torch::stable::contiguous(targets), std::nullopt, std::nullopt};
  in.pointers.dtype = dtype_of(logits, "logits");
  in.logits = with_walkable_rows(logits, logits, in.pointers.rows);
  in.pointers.logits = in.logits.const_data_ptr();
  in.pointers.vocab = logits.size(logits.dim() - 1);
  in.pointers.targets = static_cast<const int64_t*>(in.targets.const_data_ptr());
  in.pointers.targets_per_row = one_each ? 1 : targets.size(targets.dim() - 1);
  in.pointers.temperature = temperature;
  if (mask) {
    check_cpu(*mask, "mask");
    check_dtype(*mask, "mask", ScalarType::Bool, "bool");
    check_leading(*mask, "mask", logits, logits.dim() - 1);
    in.mask = torch::stable::contiguous(*mask);
    in.pointers.mask = mask_pointer(*in.mask);
  }
  if (keep_mask) {
    check_cpu(*keep_mask, "keep_mask");
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

// Runs `kernel(begin, end)` over all rows; a row with a bad target becomes an error here, because
// nothing may be thrown across the threads.
template <typename Kernel>
void for_rows(const Input& in, const Kernel& kernel) {
  const int64_t rows = row_count(in.logits), k = in.pointers.targets_per_row;
  std::atomic<int64_t> first_bad{rows};
  const int64_t grain = std::max<int64_t>(1, 32768 / in.pointers.vocab);
  torch::stable::parallel_for(0, rows, grain, [&](int64_t begin, int64_t end) {
    const int64_t bad = kernel(begin, end);
    int64_t seen = first_bad.load();
    while (bad >= 0 && bad < seen && !first_bad.compare_exchange_weak(seen, bad)) {
    }
  });
  const int64_t row = first_bad.load();
  if (row == rows) return;
  for (int64_t j = 0; j < k; ++j) {
    const int64_t target = in.pointers.targets[row * k + j];
    if (target < 0 || target >= in.pointers.vocab) {
      fail("targets must lie in [0, ", in.pointers.vocab, "), got ", target, " in row ", row,
           " (rows with mask False are not checked)");
    }
  }
}

std::tuple<Tensor, Tensor, Tensor> forward(const Tensor& logits, const Tensor& targets,
                                           const std::optional<Tensor>& mask,
                                           const std::optional<Tensor>& keep_mask,
                                           double temperature, bool /*inplace_backward*/) {
  const Input in = make_input(logits, targets, mask, keep_mask, temperature);
  const ScalarType real = real_type(logits);
  std::vector<int64_t> sizes = leading_sizes(logits);
  Tensor entropy = torch::stable::new_empty(logits, sizes, real);
  sizes.push_back(cpu::kLogprobStats);
  Tensor stats = torch::stable::new_empty(logits, sizes, real);
  Tensor logprobs = torch::stable::new_empty(logits, targets.sizes(), real);
  const cpu::LogprobForward args{in.pointers, logprobs.mutable_data_ptr(),
                                 entropy.mutable_data_ptr(), stats.mutable_data_ptr()};
  for_rows(in, [&](int64_t begin, int64_t end) { return cpu::logprob_forward(args, begin, end); });
  return {logprobs, entropy, stats};
}

// An upstream gradient as the kernel wants it: dense, in the dtype of the results, or absent.
const void* gradient_pointer(const std::optional<Tensor>& grad, const char* name,
                             const Tensor& logits, const Tensor& like,
                             std::optional<Tensor>& keep_alive) {
  if (!grad) return nullptr;
  check_cpu(*grad, name);
  check_dtype(*grad, name, real_type(logits), "the dtype of the results");
  if (grad->numel() != like.numel()) {
    fail(name, " must have the shape ", shape_text(like), ", got ", shape_text(*grad));
  }
  keep_alive = torch::stable::contiguous(*grad);
  return keep_alive->const_data_ptr();
}

void backward_into(const std::optional<Tensor>& grad_logprobs,
                   const std::optional<Tensor>& grad_entropy, const Input& in,
                   const Tensor& logprobs, const Tensor& stats, void* grad_logits,
                   const Rows& grad_rows) {
  const int64_t rows = row_count(in.logits);
  check_dtype(logprobs, "logprobs", real_type(in.logits), "the dtype of the results");
  check_dtype(stats, "stats", real_type(in.logits), "the dtype of the results");
  check_same_shape(logprobs, "logprobs", in.targets, "targets");
  if (stats.numel() != rows * cpu::kLogprobStats) {
    fail("stats must hold ", cpu::kLogprobStats, " numbers a row, got ", shape_text(stats));
  }
  const Tensor dense_logprobs = torch::stable::contiguous(logprobs);
  const Tensor dense_stats = torch::stable::contiguous(stats);
  std::optional<Tensor> dense_grad_logprobs, dense_grad_entropy;
  const auto* g =
      gradient_pointer(grad_logprobs, "grad_logprobs", in.logits, logprobs, dense_grad_logprobs);
  const void* h = nullptr;
  if (grad_entropy) {
    check_leading(*grad_entropy, "grad_entropy", in.logits, in.logits.dim() - 1);
    h = gradient_pointer(grad_entropy, "grad_entropy", in.logits, *grad_entropy,
                         dense_grad_entropy);
  }
  const cpu::LogprobBackward args{
      in.pointers, g,        h, dense_logprobs.const_data_ptr(), dense_stats.const_data_ptr(),
      grad_logits, grad_rows};
  for_rows(in, [&](int64_t begin, int64_t end) { return cpu::logprob_backward(args, begin, end); });
}

int64_t element_bytes(DType dtype) {
  switch (dtype) {
    case DType::kFloat64:
      return 8;
    case DType::kFloat32:
      return 4;
    case DType::kBFloat16:
    case DType::kFloat16:
      break;
  }
  return 2;
}

Tensor backward(const std::optional<Tensor>& grad_logprobs,
                const std::optional<Tensor>& grad_entropy, const Tensor& logits,
                const Tensor& targets, const std::optional<Tensor>& mask,
                const std::optional<Tensor>& keep_mask, const Tensor& logprobs, const Tensor& stats,
                double temperature) {
  const Input in = make_input(logits, targets, mask, keep_mask, temperature);
  Tensor grad = torch::stable::new_empty(logits, logits.sizes());
  // Fresh memory costs more than computing the gradient (measured in docs/ops/logprob.md).
  prefer_huge_pages(grad.mutable_data_ptr(), grad.numel() * element_bytes(in.pointers.dtype));
  Rows rows;
  rows_of(grad, grad, rows);
  backward_into(grad_logprobs, grad_entropy, in, logprobs, stats, grad.mutable_data_ptr(), rows);
  return grad;
}

void backward_inplace(const std::optional<Tensor>& grad_logprobs,
                      const std::optional<Tensor>& grad_entropy, Tensor logits,
                      const Tensor& targets, const std::optional<Tensor>& mask,
                      const std::optional<Tensor>& keep_mask, const Tensor& logprobs,
                      const Tensor& stats, double temperature) {
  const Input in = make_input(logits, targets, mask, keep_mask, temperature);
  bool overlaps = false;
  for (int d = 0; d < in.pointers.rows.dims; ++d) {
    overlaps = overlaps || in.pointers.rows.stride[d] == 0;
  }
  if (in.pointers.logits != logits.const_data_ptr() || overlaps) {
    fail(
        "logits must have adjacent vocabulary entries and rows of their own to be overwritten "
        "by their gradient");
  }
  backward_into(grad_logprobs, grad_entropy, in, logprobs, stats, logits.mutable_data_ptr(),
                in.pointers.rows);
}

}  // namespace
}  // namespace oneshot

STABLE_TORCH_LIBRARY_IMPL(oneshot, CPU, m) {
  m.impl("token_logprobs_and_entropy", TORCH_BOX(&oneshot::forward));
  m.impl("token_logprobs_and_entropy_backward", TORCH_BOX(&oneshot::backward));
  m.impl("token_logprobs_and_entropy_backward_", TORCH_BOX(&oneshot::backward_inplace));
}
