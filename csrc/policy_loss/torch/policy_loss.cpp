// torch ops of the `policy_loss` family on CPU tensors (stable ABI only).
#include "policy_loss/cpu/policy_loss.h"

#include <limits>
#include <optional>
#include <tuple>
#include <vector>

#include "policy_loss/torch/policy_loss_layout.h"

namespace oneshot {
namespace {

double scalar_or_nan(const OptionalTensor& t, const char* name) {
  if (!t) return std::numeric_limits<double>::quiet_NaN();
  check_cpu(*t, name);
  if (t->numel() != 1) fail(name, " must be one number, got ", shape_text(*t));
  switch (t->scalar_type()) {
    case ScalarType::Double:
      return *static_cast<const double*>(t->const_data_ptr());
    case ScalarType::Float:
      return double(*static_cast<const float*>(t->const_data_ptr()));
    case ScalarType::Long:
      return double(*static_cast<const int64_t*>(t->const_data_ptr()));
    default:
      fail(name, " must be float64, float32 or int64, got dtype code ", int(t->scalar_type()));
  }
}

std::tuple<Tensor, Tensor, Tensor> policy_loss(
    const Tensor& logprobs, const OptionalTensor& old_logprobs, const Tensor& advantages,
    const OptionalTensor& mask, const OptionalTensor& ref_logprobs, const OptionalTensor& entropy,
    const OptionalTensor& importance_weights, const OptionalTensor& cu_seqlens,
    const OptionalTensor& count, const std::vector<double>& options, int64_t max_length) {
  const Layout layout(On::kCpu, logprobs, "logprobs", mask, cu_seqlens);
  const PolicyInputs in{layout.rows,
                        layout.view(logprobs, "logprobs"),
                        layout.view(old_logprobs, "old_logprobs"),
                        layout.view(advantages, "advantages", true),
                        layout.view(ref_logprobs, "ref_logprobs"),
                        layout.view(entropy, "entropy"),
                        layout.view(importance_weights, "importance_weights", true),
                        policy_options(options, max_length)};
  const double total = scalar_or_nan(count, "count");
  std::vector<PolicySums> sums(static_cast<size_t>(layout.rows.batch));
  layout.parallel(
      [&](int64_t begin, int64_t end) { cpu::policy_loss_rows(in, sums.data(), begin, end); });
  Tensor weights = torch::stable::new_empty(logprobs, {4, layout.rows.batch}, ScalarType::Double);
  double loss_value, figures[kPolicyMetrics];
  cpu::policy_loss_total(in, total, sums.data(), &loss_value, figures,
                         static_cast<double*>(weights.mutable_data_ptr()));
  Tensor loss = layout.result({}), metrics = layout.result({kPolicyMetrics});
  layout.put(loss, &loss_value);
  layout.put(metrics, figures);
  return {loss, metrics, weights};
}

std::tuple<Tensor, Tensor> policy_loss_backward(
    const Tensor& grad_loss, const Tensor& logprobs, const OptionalTensor& old_logprobs,
    const Tensor& advantages, const OptionalTensor& mask, const OptionalTensor& ref_logprobs,
    const OptionalTensor& importance_weights, const OptionalTensor& cu_seqlens,
    const Tensor& weights, bool grad_logprobs, bool grad_entropy,
    const std::vector<double>& options, int64_t max_length) {
  const Layout layout(On::kCpu, logprobs, "logprobs", mask, cu_seqlens);
  const PolicyInputs in{layout.rows,
                        layout.view(logprobs, "logprobs"),
                        layout.view(old_logprobs, "old_logprobs"),
                        layout.view(advantages, "advantages", true),
                        layout.view(ref_logprobs, "ref_logprobs"),
                        {},
                        layout.view(importance_weights, "importance_weights", true),
                        policy_options(options, max_length)};
  check_cpu(weights, "weights");
  check_dtype(weights, "weights", ScalarType::Double, "float64");
  if (weights.numel() != 4 * layout.rows.batch) {
    fail("weights must be [4, ", layout.rows.batch, "], got ", shape_text(weights));
  }
  const Tensor dense = torch::stable::contiguous(weights);
  const std::vector<int64_t> shape(logprobs.sizes().begin(), logprobs.sizes().end());
  const std::vector<int64_t> nothing{0};
  Tensor by_logprobs = fresh(logprobs, grad_logprobs ? shape : nothing);
  Tensor by_entropy = fresh(logprobs, grad_entropy ? shape : nothing);
  const cpu::PolicyGradient grad{scalar_or_nan(grad_loss, "grad_loss"),
                                 static_cast<const double*>(dense.const_data_ptr()),
                                 grad_logprobs ? by_logprobs.mutable_data_ptr() : nullptr,
                                 grad_entropy ? by_entropy.mutable_data_ptr() : nullptr};
  layout.parallel(
      [&](int64_t begin, int64_t end) { cpu::policy_loss_backward_rows(in, grad, begin, end); });
  return {by_logprobs, by_entropy};
}

std::tuple<Tensor, Tensor, Tensor> value_loss(
    const Tensor& values, const OptionalTensor& old_values, const Tensor& returns,
    const OptionalTensor& mask, const OptionalTensor& cu_seqlens, const OptionalTensor& count,
    double clip, int64_t aggregate, bool count_empty, int64_t max_length) {
  const Layout layout(On::kCpu, values, "values", mask, cu_seqlens);
  const ValueInputs in = value_inputs(layout, values, old_values, returns, clip);
  const Normalizer how{aggregate_of(aggregate), count_empty, scalar_or_nan(count, "count"),
                       double(max_length)};
  std::vector<ValueSums> sums(static_cast<size_t>(layout.rows.batch));
  layout.parallel(
      [&](int64_t begin, int64_t end) { cpu::value_loss_rows(in, sums.data(), begin, end); });
  Tensor weights = torch::stable::new_empty(values, {layout.rows.batch}, ScalarType::Double);
  double loss_value, figures[kValueMetrics];
  cpu::value_loss_total(in, how, sums.data(), &loss_value, figures,
                        static_cast<double*>(weights.mutable_data_ptr()));
  Tensor loss = layout.result({}), metrics = layout.result({kValueMetrics});
  layout.put(loss, &loss_value);
  layout.put(metrics, figures);
  return {loss, metrics, weights};
}

Tensor value_loss_backward(const Tensor& grad_loss, const Tensor& values,
                           const OptionalTensor& old_values, const Tensor& returns,
                           const OptionalTensor& mask, const OptionalTensor& cu_seqlens,
                           const Tensor& weights, double clip) {
  const Layout layout(On::kCpu, values, "values", mask, cu_seqlens);
  const ValueInputs in = value_inputs(layout, values, old_values, returns, clip);
  check_cpu(weights, "weights");
  check_dtype(weights, "weights", ScalarType::Double, "float64");
  if (weights.numel() != layout.rows.batch) {
    fail("weights must be [", layout.rows.batch, "], got ", shape_text(weights));
  }
  const Tensor dense = torch::stable::contiguous(weights);
  const double scale = scalar_or_nan(grad_loss, "grad_loss");
  const std::vector<int64_t> shape(values.sizes().begin(), values.sizes().end());
  Tensor by_values = fresh(values, shape);
  layout.parallel([&](int64_t begin, int64_t end) {
    cpu::value_loss_backward_rows(in, scale, static_cast<const double*>(dense.const_data_ptr()),
                                  by_values.mutable_data_ptr(), begin, end);
  });
  return by_values;
}

std::tuple<Tensor, Tensor> importance_weights(
    const Tensor& logprobs, const Tensor& sampler_logprobs, const OptionalTensor& mask,
    const OptionalTensor& cu_seqlens, bool per_sequence, bool truncate, double low, double high,
    double log_ratio_clamp, bool normalize, bool ignore_nan) {
  const Layout layout(On::kCpu, logprobs, "logprobs", mask, cu_seqlens);
  std::vector<int64_t> shape{layout.rows.batch};
  if (!per_sequence) shape.assign(logprobs.sizes().begin(), logprobs.sizes().end());
  Tensor weights = fresh(logprobs, shape, layout.result_type());
  const WeightInputs in{layout.rows,
                        layout.view(logprobs, "logprobs"),
                        layout.view(sampler_logprobs, "sampler_logprobs"),
                        per_sequence,
                        truncate,
                        low,
                        high,
                        log_ratio_clamp,
                        normalize,
                        ignore_nan,
                        weights.mutable_data_ptr()};
  std::vector<WeightSums> sums(static_cast<size_t>(layout.rows.batch));
  layout.parallel([&](int64_t begin, int64_t end) {
    cpu::importance_weights_rows(in, sums.data(), begin, end);
  });
  double figures[kWeightMetrics];
  cpu::importance_weights_total(in, sums.data(), figures);
  const double normalizer = figures[kWeightMetrics - 1];
  if (normalize) {
    layout.parallel([&](int64_t begin, int64_t end) {
      cpu::importance_weights_scale(in, normalizer, begin, end);
    });
  }
  Tensor metrics = layout.result({kWeightMetrics});
  layout.put(metrics, figures);
  return {weights, metrics};
}

}  // namespace
}  // namespace oneshot

STABLE_TORCH_LIBRARY_IMPL(oneshot, CPU, m) {
  m.impl("policy_loss", TORCH_BOX(&oneshot::policy_loss));
  m.impl("policy_loss_backward", TORCH_BOX(&oneshot::policy_loss_backward));
  m.impl("value_loss", TORCH_BOX(&oneshot::value_loss));
  m.impl("value_loss_backward", TORCH_BOX(&oneshot::value_loss_backward));
  m.impl("importance_weights", TORCH_BOX(&oneshot::importance_weights));
}
