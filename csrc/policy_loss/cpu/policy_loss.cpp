#include "policy_loss/cpu/policy_loss.h"

#include <type_traits>
#include <vector>

#define ONESHOT_KERNEL_BODY "policy_loss/cpu/policy_loss.inc"
#include "cpu/foreach_isa.h"

namespace oneshot::cpu {

void policy_loss_rows(const PolicyInputs& in, PolicySums* sums, int64_t begin, int64_t end) {
  ONESHOT_DISPATCH_ISA(policy_loss_rows, in, sums, begin, end);
}

void policy_loss_backward_rows(const PolicyInputs& in, const PolicyGradient& grad, int64_t begin,
                               int64_t end) {
  ONESHOT_DISPATCH_ISA(policy_loss_backward_rows, in, grad, begin, end);
}

void value_loss_rows(const ValueInputs& in, ValueSums* sums, int64_t begin, int64_t end) {
  ONESHOT_DISPATCH_ISA(value_loss_rows, in, sums, begin, end);
}

void value_loss_backward_rows(const ValueInputs& in, double grad_loss, const double* weights,
                              void* by_values, int64_t begin, int64_t end) {
  ONESHOT_DISPATCH_ISA(value_loss_backward_rows, in, grad_loss, weights, by_values, begin, end);
}

void importance_weights_rows(const WeightInputs& in, WeightSums* sums, int64_t begin, int64_t end) {
  ONESHOT_DISPATCH_ISA(importance_weights_rows, in, sums, begin, end);
}

namespace {

constexpr double kInf = std::numeric_limits<double>::infinity();

double ratio_or_zero(double a, double b) { return b == 0.0 ? 0.0 : a / b; }

// Smallest and largest of what counts; NaN if any of it is NaN, 0 if nothing counts.
struct Range {
  double low = kInf, high = -kInf;
  void add(double smallest, double largest) {
    low = smallest < low ? smallest : low;
    high = largest > high ? largest : high;
  }
  void settle(double mean, bool empty) {
    if (empty) low = high = 0.0;
    if (std::isnan(mean)) low = high = mean;
  }
};

// A weight of 0, as masked tokens have, stays 0 whatever the normalizer is.
double divided(double weight, double normalizer) {
  return weight == 0.0 ? 0.0 : weight / normalizer;
}

template <typename Divide>
void divide_row(const WeightInputs& in, int64_t b, const Divide& divide) {
  const Sequences& s = in.sequences;
  const int64_t first = in.per_sequence ? b : s.dense(b);
  const int64_t count = in.per_sequence ? 1 : s.length(b);
  for (int64_t i = first; i < first + count; ++i) divide(i);
}

}  // namespace

void token_weights(const Normalizer& how, const int64_t* lengths, int64_t batch, double* weights) {
  double tokens = 0.0, filled = 0.0;
  for (int64_t b = 0; b < batch; ++b) {
    tokens += double(lengths[b]);
    filled += lengths[b] > 0 ? 1.0 : 0.0;
  }
  double total = 1.0;
  if (how.aggregate == Aggregate::kTokenMean) {
    total = std::isnan(how.count) ? tokens : how.count;
  } else if (how.aggregate != Aggregate::kTokenSum) {
    total = std::isnan(how.count) ? (how.count_empty ? double(batch) : filled) : how.count;
  }
  if (how.aggregate == Aggregate::kSeqMeanTokenSumNorm) total *= how.max_length;
  for (int64_t b = 0; b < batch; ++b) {
    const bool mean = how.aggregate == Aggregate::kSeqMeanTokenMean;
    weights[b] = ratio_or_zero(1.0, mean ? total * double(lengths[b]) : total);
  }
}

void policy_loss_total(const PolicyInputs& in, double count, const PolicySums* sums, double* loss,
                       double* metrics, double* weights) {
  const PolicyOptions& o = in.options;
  const int64_t batch = in.sequences.batch;
  const double nan = std::numeric_limits<double>::quiet_NaN();
  // The token counts lie beside the sums; token_weights wants them dense.
  std::vector<int64_t> lengths(static_cast<size_t>(batch));
  for (int64_t b = 0; b < batch; ++b) lengths[size_t(b)] = sums[b].tokens;

  const Aggregate modes[3] = {Aggregate::kAsPolicy, o.kl_aggregate, o.entropy_aggregate};
  const double coefficients[3] = {o.policy_coef, o.kl_coef, -o.entropy_coef};
  double terms[3] = {0.0, 0.0, 0.0};
  *loss = 0.0;
  for (int part = 0; part < 3; ++part) {
    const bool like_policy = modes[part] == Aggregate::kAsPolicy;
    const Normalizer how{like_policy ? o.aggregate : modes[part], o.count_empty,
                         like_policy ? count : nan, o.max_length};
    double* row = weights + part * batch;
    token_weights(how, lengths.data(), batch, row);
    for (int64_t b = 0; b < batch; ++b) {
      const double sum = part == 0 ? sums[b].policy : part == 1 ? sums[b].kl : sums[b].entropy;
      terms[part] += row[b] * sum;
      row[b] *= coefficients[part];
      if (coefficients[part] != 0.0) *loss += row[b] * sum;  // only reported: may be infinite
    }
  }

  PolicySums all{};
  Range range;
  double filled = 0.0;
  for (int64_t b = 0; b < batch; ++b) {
    const PolicySums& row = sums[b];
    weights[3 * batch + b] = row.exponent;
    all.kl += row.kl;
    all.entropy += row.entropy;
    all.log_ratio += row.log_ratio;
    all.ratio += row.ratio;
    all.tokens += row.tokens;
    all.clipped_low += row.clipped_low;
    all.clipped_high += row.clipped_high;
    all.clipped_dual += row.clipped_dual;
    range.add(row.ratio_min, row.ratio_max);
    filled += row.tokens > 0 ? 1.0 : 0.0;
  }
  const double tokens = double(all.tokens);
  range.settle(all.ratio, all.tokens == 0);
  const double figures[kPolicyMetrics] = {terms[0],
                                          terms[1],
                                          terms[2],
                                          ratio_or_zero(all.kl, tokens),
                                          ratio_or_zero(all.entropy, tokens),
                                          ratio_or_zero(-all.log_ratio, tokens),
                                          ratio_or_zero(all.ratio, tokens),
                                          range.low,
                                          range.high,
                                          ratio_or_zero(double(all.clipped_low), tokens),
                                          ratio_or_zero(double(all.clipped_high), tokens),
                                          ratio_or_zero(double(all.clipped_dual), tokens),
                                          tokens,
                                          filled};
  for (int i = 0; i < kPolicyMetrics; ++i) metrics[i] = figures[i];
}

void value_loss_total(const ValueInputs& in, const Normalizer& how, const ValueSums* sums,
                      double* loss, double* metrics, double* weights) {
  const int64_t batch = in.sequences.batch;
  std::vector<int64_t> lengths(static_cast<size_t>(batch));
  for (int64_t b = 0; b < batch; ++b) lengths[size_t(b)] = sums[b].tokens;
  token_weights(how, lengths.data(), batch, weights);
  ValueSums all{};
  *loss = 0.0;
  for (int64_t b = 0; b < batch; ++b) {
    *loss += weights[b] * sums[b].loss;
    all.value += sums[b].value;
    all.target += sums[b].target;
    all.target_square += sums[b].target_square;
    all.error += sums[b].error;
    all.error_square += sums[b].error_square;
    all.tokens += sums[b].tokens;
    all.clipped += sums[b].clipped;
  }
  const double tokens = double(all.tokens);
  const auto mean = [&](double x) { return ratio_or_zero(x, tokens); };
  const double spread = mean(all.target_square) - mean(all.target) * mean(all.target);
  const double residual = mean(all.error_square) - mean(all.error) * mean(all.error);
  metrics[0] = mean(double(all.clipped));
  metrics[1] = mean(all.value);
  metrics[2] = mean(all.target);
  metrics[3] = spread == 0.0 ? 0.0 : 1.0 - residual / spread;
  metrics[4] = tokens;
}

void importance_weights_total(const WeightInputs& in, const WeightSums* sums, double* metrics) {
  const int64_t batch = in.sequences.batch;
  WeightSums all{};
  Range range;
  double sequence_weights = 0.0, filled = 0.0;
  for (int64_t b = 0; b < batch; ++b) {
    const WeightSums& row = sums[b];
    if (row.tokens == 0) continue;
    all.weight += row.weight;
    all.square += row.square;
    all.log_ratio += row.log_ratio;
    all.tokens += row.tokens;
    all.below += row.below;
    all.above += row.above;
    range.add(row.smallest, row.largest);
    sequence_weights += row.weight / double(row.tokens);
    filled += 1.0;
  }
  const double tokens = double(all.tokens);
  const double mean = ratio_or_zero(all.weight, tokens);
  range.settle(mean, all.tokens == 0);
  double normalizer = 1.0;
  if (in.normalize) {
    normalizer = in.per_sequence ? ratio_or_zero(sequence_weights, filled) : mean;
    if (!(normalizer > 1e-8) && !std::isnan(normalizer)) normalizer = 1.0;
  }
  metrics[0] = mean;
  metrics[1] = range.low;
  metrics[2] = range.high;
  metrics[3] = ratio_or_zero(mean * mean, ratio_or_zero(all.square, tokens));
  metrics[4] = ratio_or_zero(double(all.below), tokens);
  metrics[5] = ratio_or_zero(double(all.above), tokens);
  metrics[6] = ratio_or_zero(-all.log_ratio, tokens);
  metrics[7] = normalizer;
}

void importance_weights_scale(const WeightInputs& in, double normalizer, int64_t begin,
                              int64_t end) {
  for (int64_t b = begin; b < end; ++b) {
    if (in.sequences.wide) {
      double* w = static_cast<double*>(in.weights);
      divide_row(in, b, [&](int64_t i) { w[i] = divided(w[i], normalizer); });
    } else {
      float* w = static_cast<float*>(in.weights);
      divide_row(in, b, [&](int64_t i) { w[i] = float(divided(double(w[i]), normalizer)); });
    }
  }
}

}  // namespace oneshot::cpu
