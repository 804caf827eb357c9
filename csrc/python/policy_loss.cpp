#include "cpu/policy_loss.h"

#include <optional>
#include <vector>

#include "python/bindings.h"

namespace oneshot {
namespace {

using Array = Dense<float>;
using OptionalArray = std::optional<Array>;
using OptionalMask = std::optional<Dense<bool>>;
using OptionalBounds = std::optional<Dense<int64_t>>;

// Shapes are checked in oneshot/numpy/policy_loss.py.
cpu::Sequences sequences(const Array& tokens, const OptionalMask& mask,
                         const OptionalBounds& cu_seqlens) {
  cpu::Sequences s;
  s.mask = mask ? mask->data() : nullptr;
  if (cu_seqlens) {
    s.cu_seqlens = cu_seqlens->data();
    s.batch = int64_t(cu_seqlens->size()) - 1;
  } else {
    s.batch = tokens.shape(0);
    s.width = tokens.shape(1);
  }
  return s;
}

cpu::TokenView view(const OptionalArray& array, const Array& tokens) {
  cpu::TokenView v;
  if (!array) return v;
  v.data = array->data();
  if (array->ndim() == tokens.ndim() && array->size() == tokens.size()) {
    v.row_stride = tokens.ndim() == 2 ? tokens.shape(1) : 0;
    v.token_stride = 1;
  } else {
    v.row_stride = 1;  // one value a sequence
  }
  return v;
}

Array result(const Array& tokens) {
  return Array(std::vector<py::ssize_t>(tokens.shape(), tokens.shape() + tokens.ndim()));
}

py::tuple policy_loss(const Array& logprobs, const OptionalArray& old_logprobs,
                      const Array& advantages, const OptionalMask& mask,
                      const OptionalArray& ref_logprobs, const OptionalArray& entropy,
                      const OptionalArray& importance_weights, const OptionalBounds& cu_seqlens,
                      double count, const std::vector<double>& options, int64_t max_length) {
  const cpu::PolicyInputs in{
      sequences(logprobs, mask, cu_seqlens), view(logprobs, logprobs),
      view(old_logprobs, logprobs),          view(advantages, logprobs),
      view(ref_logprobs, logprobs),          view(entropy, logprobs),
      view(importance_weights, logprobs),    cpu::policy_options(options, max_length)};
  const int64_t batch = in.sequences.batch;
  std::vector<cpu::PolicySums> sums(static_cast<size_t>(batch));
  std::vector<double> weights(size_t(4 * batch)), metrics(cpu::kPolicyMetrics);
  double loss = 0.0;
  cpu::policy_loss_rows(in, sums.data(), 0, batch);
  cpu::policy_loss_total(in, count, sums.data(), &loss, metrics.data(), weights.data());
  Array by_logprobs = result(logprobs);
  OptionalArray by_entropy;
  if (entropy) by_entropy = result(logprobs);
  const cpu::PolicyGradient grad{1.0, weights.data(), by_logprobs.mutable_data(),
                                 by_entropy ? by_entropy->mutable_data() : nullptr};
  cpu::policy_loss_backward_rows(in, grad, 0, batch);
  return py::make_tuple(loss, metrics, by_logprobs, by_entropy);
}

py::tuple value_loss(const Array& values, const OptionalArray& old_values, const Array& returns,
                     const OptionalMask& mask, const OptionalBounds& cu_seqlens, double clip,
                     int aggregate, bool count_empty, double count, double max_length) {
  const cpu::ValueInputs in{sequences(values, mask, cu_seqlens), view(values, values),
                            view(old_values, values), view(returns, values), clip};
  const int64_t batch = in.sequences.batch;
  std::vector<cpu::ValueSums> sums(static_cast<size_t>(batch));
  std::vector<double> weights(static_cast<size_t>(batch)), metrics(cpu::kValueMetrics);
  double loss = 0.0;
  cpu::value_loss_rows(in, sums.data(), 0, batch);
  cpu::value_loss_total(in, {cpu::Aggregate(aggregate), count_empty, count, max_length},
                        sums.data(), &loss, metrics.data(), weights.data());
  Array by_values = result(values);
  cpu::value_loss_backward_rows(in, 1.0, weights.data(), by_values.mutable_data(), 0, batch);
  return py::make_tuple(loss, metrics, by_values);
}

py::tuple importance_weights(const Array& logprobs, const Array& sampler_logprobs,
                             const OptionalMask& mask, const OptionalBounds& cu_seqlens,
                             bool per_sequence, bool truncate, double low, double high,
                             double log_ratio_clamp, bool normalize, bool ignore_nan) {
  const cpu::Sequences rows = sequences(logprobs, mask, cu_seqlens);
  Array weights = per_sequence ? Array(rows.batch) : result(logprobs);
  const cpu::WeightInputs in{rows,
                             view(logprobs, logprobs),
                             view(sampler_logprobs, logprobs),
                             per_sequence,
                             truncate,
                             low,
                             high,
                             log_ratio_clamp,
                             normalize,
                             ignore_nan,
                             weights.mutable_data()};
  std::vector<cpu::WeightSums> sums(static_cast<size_t>(rows.batch));
  std::vector<double> metrics(cpu::kWeightMetrics);
  cpu::importance_weights_rows(in, sums.data(), 0, rows.batch);
  cpu::importance_weights_total(in, sums.data(), metrics.data());
  if (normalize) cpu::importance_weights_scale(in, metrics.back(), 0, rows.batch);
  return py::make_tuple(weights, metrics);
}

}  // namespace

void bind_policy_loss(py::module_& m) {
  m.def("policy_loss", &policy_loss);
  m.def("value_loss", &value_loss);
  m.def("importance_weights", &importance_weights);
}

}  // namespace oneshot
