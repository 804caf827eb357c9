// torch ops of the `advantage` family on CPU tensors (stable ABI only).
#include <cmath>
#include <optional>
#include <vector>

#include "cpu/advantage.h"
#include "torch/checks.h"

namespace oneshot {
namespace {

template <typename T>
void whiten_into(const Tensor& values, const std::optional<Tensor>& mask, bool shift_mean,
                 double eps, Tensor& out) {
  const cpu::WhitenArgs<T> args{
      static_cast<const T*>(values.const_data_ptr()), mask ? mask_pointer(*mask) : nullptr,
      static_cast<T*>(out.mutable_data_ptr()), values.numel(), shift_mean};
  const int64_t blocks = cpu::whiten_blocks(args.count);
  std::vector<cpu::WhitenPartial> partials(static_cast<size_t>(blocks));
  // Two passes: the one-pass variance loses every digit when the spread is small (verl#6348).
  const auto reduce = [&](int power, double center) {
    torch::stable::parallel_for(0, blocks, 8, [&](int64_t begin, int64_t end) {
      cpu::whiten_reduce(args, power, center, partials.data(), begin, end);
    });
    cpu::WhitenPartial total{0.0, 0};
    for (const auto& partial : partials) {
      total.sum += partial.sum;
      total.count += partial.count;
    }
    return total;
  };
  const auto first = reduce(1, 0.0);
  const double mean = first.count > 0 ? first.sum / double(first.count) : 0.0;
  const double variance = first.count > 1 ? reduce(2, mean).sum / double(first.count - 1) : 0.0;
  const double scale = 1.0 / std::sqrt(variance + eps);
  torch::stable::parallel_for(0, blocks, 8, [&](int64_t begin, int64_t end) {
    cpu::whiten_write(args, mean, scale, begin, end);
  });
}

Tensor whiten(const Tensor& values, const std::optional<Tensor>& mask, bool shift_mean,
              double eps) {
  check_cpu(values, "values");
  if (mask) {
    check_cpu(*mask, "mask");
    check_dtype(*mask, "mask", ScalarType::Bool, "bool");
    check_same_shape(*mask, "mask", values, "values");
  }
  const Tensor dense = torch::stable::contiguous(values);
  std::optional<Tensor> dense_mask;
  if (mask) dense_mask = torch::stable::contiguous(*mask);
  Tensor out = torch::stable::new_empty(dense, dense.sizes());
  switch (values.scalar_type()) {
    case ScalarType::Float:
      whiten_into<float>(dense, dense_mask, shift_mean, eps, out);
      break;
    case ScalarType::Double:
      whiten_into<double>(dense, dense_mask, shift_mean, eps, out);
      break;
    default:
      fail("values must be float32 or float64, got dtype code ", int(values.scalar_type()));
  }
  return out;
}

}  // namespace
}  // namespace oneshot

STABLE_TORCH_LIBRARY_IMPL(oneshot, CPU, m) { m.impl("whiten", TORCH_BOX(&oneshot::whiten)); }
