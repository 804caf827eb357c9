// torch ops of the `policy_loss` family on CUDA tensors (stable ABI only).
#include "policy_loss/cuda/policy_loss_parts.cuh"

#include <optional>
#include <tuple>
#include <vector>

#include "policy_loss/torch/policy_loss_layout.h"
#include "torch/cuda_stream.h"

namespace oneshot {
namespace {

// One number on the device of the tokens; nothing is read here.
cuda::DeviceScalar device_scalar(const OptionalTensor& t, const char* name, const Tensor& tokens) {
  if (!t) return {};
  check_beside(On::kCuda, *t, name, tokens, "the tokens");
  if (t->numel() != 1) fail(name, " must be one number, got ", shape_text(*t));
  switch (t->scalar_type()) {
    case ScalarType::Float:
      return {t->const_data_ptr(), cuda::DeviceScalar::kFloat32};
    case ScalarType::Double:
      return {t->const_data_ptr(), cuda::DeviceScalar::kFloat64};
    case ScalarType::Long:
      return {t->const_data_ptr(), cuda::DeviceScalar::kInt64};
    default:
      fail(name, " must be float64, float32 or int64, got dtype code ", int(t->scalar_type()));
  }
}

PolicyInputs inputs(const Layout& layout, const Tensor& logprobs,
                    const OptionalTensor& old_logprobs, const Tensor& advantages,
                    const OptionalTensor& ref_logprobs, const OptionalTensor& entropy,
                    const OptionalTensor& importance_weights, const std::vector<double>& options,
                    int64_t max_length) {
  return {layout.rows,
          layout.view(logprobs, "logprobs"),
          layout.view(old_logprobs, "old_logprobs"),
          layout.view(advantages, "advantages", true),
          layout.view(ref_logprobs, "ref_logprobs"),
          layout.view(entropy, "entropy"),
          layout.view(importance_weights, "importance_weights", true),
          policy_options(options, max_length)};
}

void check_bounds(const OptionalTensor& cu_seqlens, const Tensor& tokens) {
  if (cu_seqlens && cu_seqlens->size(0) == 1 && tokens.numel() > 0) {
    fail("cu_seqlens must rise from 0 to ", tokens.numel(), " (the tokens)");
  }
}

std::tuple<Tensor, Tensor, Tensor> policy_loss(
    const Tensor& logprobs, const OptionalTensor& old_logprobs, const Tensor& advantages,
    const OptionalTensor& mask, const OptionalTensor& ref_logprobs, const OptionalTensor& entropy,
    const OptionalTensor& importance_weights, const OptionalTensor& cu_seqlens,
    const OptionalTensor& count, const std::vector<double>& options, int64_t max_length) {
  const Layout layout(On::kCuda, logprobs, "logprobs", mask, cu_seqlens);
  check_bounds(cu_seqlens, logprobs);
  const PolicyInputs in = inputs(layout, logprobs, old_logprobs, advantages, ref_logprobs, entropy,
                                 importance_weights, options, max_length);
  const OnStreamOf stream(logprobs);
  const int64_t batch = layout.rows.batch;
  const Tensor sums = device_bytes(logprobs, batch * int64_t(sizeof(PolicySums)));
  Tensor weights = torch::stable::new_empty(logprobs, {4, batch}, ScalarType::Double);
  Tensor loss = layout.result({}), metrics = layout.result({kPolicyMetrics});
  check_launch(cuda::policy_loss(in, logprobs.numel(), device_scalar(count, "count", logprobs),
                                 static_cast<PolicySums*>(sums.mutable_data_ptr()),
                                 loss.mutable_data_ptr(), metrics.mutable_data_ptr(),
                                 static_cast<double*>(weights.mutable_data_ptr()), stream.get()),
               "policy_loss");
  return {loss, metrics, weights};
}

std::tuple<Tensor, Tensor> policy_loss_backward(
    const Tensor& grad_loss, const Tensor& logprobs, const OptionalTensor& old_logprobs,
    const Tensor& advantages, const OptionalTensor& mask, const OptionalTensor& ref_logprobs,
    const OptionalTensor& importance_weights, const OptionalTensor& cu_seqlens,
    const Tensor& weights, bool grad_logprobs, bool grad_entropy,
    const std::vector<double>& options, int64_t max_length) {
  const Layout layout(On::kCuda, logprobs, "logprobs", mask, cu_seqlens);
  check_bounds(cu_seqlens, logprobs);
  const PolicyInputs in = inputs(layout, logprobs, old_logprobs, advantages, ref_logprobs,
                                 std::nullopt, importance_weights, options, max_length);
  check_beside(On::kCuda, weights, "weights", logprobs, "logprobs");
  check_dtype(weights, "weights", ScalarType::Double, "float64");
  if (weights.numel() != 4 * layout.rows.batch) {
    fail("weights must be [4, ", layout.rows.batch, "], got ", shape_text(weights));
  }
  const OnStreamOf stream(logprobs);
  const Tensor dense = torch::stable::contiguous(weights);
  const std::vector<int64_t> shape(logprobs.sizes().begin(), logprobs.sizes().end()), nothing{0};
  Tensor by_logprobs = torch::stable::new_empty(logprobs, grad_logprobs ? shape : nothing);
  Tensor by_entropy = torch::stable::new_empty(logprobs, grad_entropy ? shape : nothing);
  check_launch(cuda::policy_loss_backward(
                   in, logprobs.numel(), device_scalar(grad_loss, "grad_loss", logprobs),
                   static_cast<const double*>(dense.const_data_ptr()),
                   grad_logprobs ? by_logprobs.mutable_data_ptr() : nullptr,
                   grad_entropy ? by_entropy.mutable_data_ptr() : nullptr, stream.get()),
               "policy_loss_backward");
  return {by_logprobs, by_entropy};
}

std::tuple<Tensor, Tensor, Tensor> value_loss(
    const Tensor& values, const OptionalTensor& old_values, const Tensor& returns,
    const OptionalTensor& mask, const OptionalTensor& cu_seqlens, const OptionalTensor& count,
    double clip, int64_t aggregate, bool count_empty, int64_t max_length) {
  const Layout layout(On::kCuda, values, "values", mask, cu_seqlens);
  check_bounds(cu_seqlens, values);
  const ValueInputs in = value_inputs(layout, values, old_values, returns, clip);
  const Normalizer how{aggregate_of(aggregate), count_empty, 0.0, double(max_length)};
  const OnStreamOf stream(values);
  const int64_t batch = layout.rows.batch;
  const Tensor sums = device_bytes(values, batch * int64_t(sizeof(ValueSums)));
  Tensor weights = torch::stable::new_empty(values, {batch}, ScalarType::Double);
  Tensor loss = layout.result({}), metrics = layout.result({kValueMetrics});
  check_launch(cuda::value_loss(in, how, values.numel(), device_scalar(count, "count", values),
                                static_cast<ValueSums*>(sums.mutable_data_ptr()),
                                loss.mutable_data_ptr(), metrics.mutable_data_ptr(),
                                static_cast<double*>(weights.mutable_data_ptr()), stream.get()),
               "value_loss");
  return {loss, metrics, weights};
}

Tensor value_loss_backward(const Tensor& grad_loss, const Tensor& values,
                           const OptionalTensor& old_values, const Tensor& returns,
                           const OptionalTensor& mask, const OptionalTensor& cu_seqlens,
                           const Tensor& weights, double clip) {
  const Layout layout(On::kCuda, values, "values", mask, cu_seqlens);
  check_bounds(cu_seqlens, values);
  const ValueInputs in = value_inputs(layout, values, old_values, returns, clip);
  check_beside(On::kCuda, weights, "weights", values, "values");
  check_dtype(weights, "weights", ScalarType::Double, "float64");
  if (weights.numel() != layout.rows.batch) {
    fail("weights must be [", layout.rows.batch, "], got ", shape_text(weights));
  }
  const OnStreamOf stream(values);
  const Tensor dense = torch::stable::contiguous(weights);
  Tensor by_values = torch::stable::new_empty(values, values.sizes());
  check_launch(
      cuda::value_loss_backward(in, values.numel(), device_scalar(grad_loss, "grad_loss", values),
                                static_cast<const double*>(dense.const_data_ptr()),
                                by_values.mutable_data_ptr(), stream.get()),
      "value_loss_backward");
  return by_values;
}

std::tuple<Tensor, Tensor> importance_weights(
    const Tensor& logprobs, const Tensor& sampler_logprobs, const OptionalTensor& mask,
    const OptionalTensor& cu_seqlens, bool per_sequence, bool truncate, double low, double high,
    double log_ratio_clamp, bool normalize, bool ignore_nan) {
  const Layout layout(On::kCuda, logprobs, "logprobs", mask, cu_seqlens);
  check_bounds(cu_seqlens, logprobs);
  const int64_t batch = layout.rows.batch;
  std::vector<int64_t> shape{batch};
  if (!per_sequence) shape.assign(logprobs.sizes().begin(), logprobs.sizes().end());
  const OnStreamOf stream(logprobs);
  Tensor weights = layout.result(shape), metrics = layout.result({kWeightMetrics});
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
  const Tensor sums = device_bytes(logprobs, batch * int64_t(sizeof(WeightSums)));
  const Tensor normalizer = device_bytes(logprobs, sizeof(double));
  check_launch(cuda::importance_weights(in, logprobs.numel(),
                                        static_cast<WeightSums*>(sums.mutable_data_ptr()),
                                        static_cast<double*>(normalizer.mutable_data_ptr()),
                                        metrics.mutable_data_ptr(), stream.get()),
               "importance_weights");
  return {weights, metrics};
}

}  // namespace
}  // namespace oneshot

STABLE_TORCH_LIBRARY_IMPL(oneshot, CUDA, m) {
  m.impl("policy_loss", TORCH_BOX(&oneshot::policy_loss));
  m.impl("policy_loss_backward", TORCH_BOX(&oneshot::policy_loss_backward));
  m.impl("value_loss", TORCH_BOX(&oneshot::value_loss));
  m.impl("value_loss_backward", TORCH_BOX(&oneshot::value_loss_backward));
  m.impl("importance_weights", TORCH_BOX(&oneshot::importance_weights));
}
