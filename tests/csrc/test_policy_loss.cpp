// The policy_loss kernels without torch: closed forms, one token at a time.
#include "policy_loss/cpu/policy_loss.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <memory>
#include <vector>

using namespace oneshot;
using namespace oneshot::cpu;

namespace {

constexpr double kInf = std::numeric_limits<double>::infinity();
constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

// A padded batch of `lengths`, NaN wherever the mask is false, sized so that the sanitizer sees
// every read or write past the end.
struct Batch {
  int64_t rows, width;
  std::vector<float> logprobs, old, ref, entropy, advantages, grad, grad_entropy;
  std::unique_ptr<bool[]> mask;

  Batch(const std::vector<int64_t>& lengths, int64_t columns)
      : rows(int64_t(lengths.size())), width(columns) {
    const size_t n = size_t(rows * width);
    for (auto* x : {&logprobs, &old, &ref, &entropy, &grad, &grad_entropy}) x->assign(n, kNan);
    mask.reset(new bool[n]);
    for (int64_t b = 0; b < rows; ++b) {
      advantages.push_back(float(std::sin(double(b) * 2.3 + 0.4)));
      for (int64_t t = 0; t < width; ++t) {
        const size_t i = size_t(b * width + t);
        mask[i] = t < lengths[size_t(b)];
        if (!mask[i]) continue;
        logprobs[i] = float(-1.0 - std::sin(double(i)));
        old[i] = logprobs[i] + 0.4f * float(std::cos(double(i) * 1.7));
        ref[i] = logprobs[i] + 0.3f * float(std::cos(double(i) * 0.9));
        entropy[i] = float(i % 5);
      }
    }
  }

  TokenView view(std::vector<float>& x) const { return {x.data(), DType::kFloat32, width, 1}; }

  PolicyInputs inputs() {
    PolicyInputs in{};
    in.sequences.batch = rows;
    in.sequences.width = width;
    in.sequences.mask = mask.get();
    in.logprobs = view(logprobs);
    in.old_logprobs = view(old);
    in.ref_logprobs = view(ref);
    in.entropy = view(entropy);
    in.advantages = {advantages.data(), DType::kFloat32, 1, 0};
    PolicyOptions& o = in.options;
    o.surrogate = Surrogate::kClip;
    o.ratio = RatioLevel::kToken;
    o.clip_min = 0.8;
    o.clip_max = 1.2;
    o.dual_clip = o.delta = o.log_ratio_max = o.kl_log_ratio_clamp = o.kl_clamp = kInf;
    o.log_ratio_min = -kInf;
    o.kl = KlEstimator::kK3;
    o.policy_coef = 1.0;
    o.kl_coef = 0.1;
    o.entropy_coef = 0.01;
    o.aggregate = Aggregate::kTokenMean;
    o.kl_aggregate = o.entropy_aggregate = Aggregate::kAsPolicy;
    o.max_length = 1.0;
    return in;
  }
};

struct Result {
  double loss;
  std::vector<double> metrics, weights;
};

Result run(Batch& batch, const PolicyInputs& in) {
  Result r{0.0, std::vector<double>(kPolicyMetrics), std::vector<double>(size_t(4 * batch.rows))};
  std::vector<PolicySums> sums(size_t(batch.rows));
  // Two pieces: a pass over some sequences must not touch the others.
  policy_loss_rows(in, sums.data(), batch.rows / 2, batch.rows);
  policy_loss_rows(in, sums.data(), 0, batch.rows / 2);
  policy_loss_total(in, kNan, sums.data(), &r.loss, r.metrics.data(), r.weights.data());
  const PolicyGradient grad{2.0, r.weights.data(), batch.grad.data(), batch.grad_entropy.data()};
  policy_loss_backward_rows(in, grad, 0, batch.rows);
  return r;
}

}  // namespace

TEST(PolicyLoss, MatchesLoopsInDouble) {
  for (const int64_t width : {int64_t(1), int64_t(7), int64_t(63), int64_t(1000)}) {
    Batch batch({width, 0, (width + 1) / 2}, width);
    const Result r = run(batch, batch.inputs());
    double policy = 0, kl = 0, entropy = 0, tokens = 0;
    for (int64_t i = 0; i < batch.rows * width; ++i) tokens += batch.mask[size_t(i)] ? 1 : 0;
    for (int64_t i = 0; i < batch.rows * width; ++i) {
      const size_t k = size_t(i);
      if (!batch.mask[k]) {
        EXPECT_EQ(batch.grad[k], 0.0f);
        EXPECT_EQ(batch.grad_entropy[k], 0.0f);
        continue;
      }
      const double a = batch.advantages[size_t(i / width)];
      const double ratio = std::exp(double(batch.logprobs[k]) - double(batch.old[k]));
      const double clipped = std::fmin(std::fmax(ratio, 0.8), 1.2);
      const bool cut = (a > 0 && ratio > 1.2) || (a < 0 && ratio < 0.8);
      const double d = double(batch.ref[k]) - double(batch.logprobs[k]);
      policy += -std::fmin(ratio * a, clipped * a);
      kl += std::exp(d) - d - 1;
      entropy += batch.entropy[k];
      const double slope = (cut ? 0.0 : -ratio * a) + 0.1 * (1 - std::exp(d));
      EXPECT_NEAR(batch.grad[k], 2.0 * slope / tokens, 2e-6 / tokens + 1e-9);
      EXPECT_NEAR(batch.grad_entropy[k], -2.0 * 0.01 / tokens, 1e-8);
    }
    EXPECT_NEAR(r.loss, (policy + 0.1 * kl - 0.01 * entropy) / tokens, 1e-6);
    EXPECT_NEAR(r.metrics[0], policy / tokens, 1e-6);
    EXPECT_NEAR(r.metrics[1], kl / tokens, 1e-6);
    EXPECT_NEAR(r.metrics[2], entropy / tokens, 1e-5);
    EXPECT_EQ(r.metrics[12], tokens);
    EXPECT_EQ(r.metrics[13], 2.0);
  }
}

TEST(PolicyLoss, PackedHasTheBitsOfPadded) {
  const std::vector<int64_t> lengths{300, 0, 17, 513};
  Batch padded(lengths, 600);
  PolicyInputs in = padded.inputs();
  in.options.ratio = RatioLevel::kSequence;
  const Result r = run(padded, in);

  std::vector<int64_t> bounds{0};
  std::vector<float> logprobs, old, ref, entropy, grad(830), grad_entropy(830);
  for (int64_t b = 0; b < 4; ++b) {
    bounds.push_back(bounds.back() + lengths[size_t(b)]);
    for (int64_t t = 0; t < lengths[size_t(b)]; ++t) {
      const size_t i = size_t(b * 600 + t);
      logprobs.push_back(padded.logprobs[i]);
      old.push_back(padded.old[i]);
      ref.push_back(padded.ref[i]);
      entropy.push_back(padded.entropy[i]);
    }
  }
  PolicyInputs flat = in;
  flat.sequences.cu_seqlens = bounds.data();
  flat.sequences.mask = nullptr;
  const auto view = [](std::vector<float>& x) {
    return TokenView{x.data(), DType::kFloat32, 0, 1};
  };
  flat.logprobs = view(logprobs);
  flat.old_logprobs = view(old);
  flat.ref_logprobs = view(ref);
  flat.entropy = view(entropy);
  std::vector<PolicySums> sums(4);
  policy_loss_rows(flat, sums.data(), 0, 4);
  double loss, metrics[kPolicyMetrics], weights[16];
  policy_loss_total(flat, kNan, sums.data(), &loss, metrics, weights);
  const PolicyGradient wanted{2.0, weights, grad.data(), grad_entropy.data()};
  policy_loss_backward_rows(flat, wanted, 0, 4);
  EXPECT_EQ(loss, r.loss);
  for (int i = 0; i < kPolicyMetrics; ++i) EXPECT_EQ(metrics[i], r.metrics[size_t(i)]);
  for (int64_t b = 0, k = 0; b < 4; ++b) {
    for (int64_t t = 0; t < lengths[size_t(b)]; ++t, ++k) {
      EXPECT_EQ(grad[size_t(k)], padded.grad[size_t(b * 600 + t)]);
      EXPECT_EQ(grad_entropy[size_t(k)], padded.grad_entropy[size_t(b * 600 + t)]);
    }
  }
}

TEST(PolicyLoss, GeometricMeanOfClippedRatios) {
  Batch batch({63, 0, 7}, 63);
  PolicyInputs in = batch.inputs();
  in.options.surrogate = Surrogate::kGmpo;
  in.options.ratio = RatioLevel::kSequence;
  in.options.aggregate = Aggregate::kSeqMeanTokenMean;
  in.options.kl_coef = in.options.entropy_coef = 0.0;
  const Result r = run(batch, in);
  double loss = 0;
  for (int64_t b = 0; b < batch.rows; ++b) {
    const double a = batch.advantages[size_t(b)];
    double sum = 0, tokens = 0;
    for (int64_t t = 0; t < batch.width; ++t) {
      const size_t i = size_t(b * batch.width + t);
      if (!batch.mask[i]) continue;
      const double x = double(batch.logprobs[i]) - double(batch.old[i]);
      sum += a > 0 ? std::fmin(x, std::log(1.2)) : std::fmax(x, std::log(0.8));
      tokens += 1;
    }
    if (tokens == 0) continue;
    const double term = -a * std::exp(sum / tokens);
    loss += term / 2;  // sequences with a token
    for (int64_t t = 0; t < batch.width; ++t) {
      const size_t i = size_t(b * batch.width + t);
      if (!batch.mask[i]) continue;
      const double x = double(batch.logprobs[i]) - double(batch.old[i]);
      const bool held = a > 0 ? x > std::log(1.2) : x < std::log(0.8);
      EXPECT_NEAR(batch.grad[i], held ? 0.0 : 2.0 * term / 2 / tokens, 2e-6);
    }
  }
  EXPECT_NEAR(r.loss, loss, 1e-6);
}

TEST(PolicyLoss, TokenWeights) {
  const int64_t lengths[3] = {4, 0, 1};
  double w[3];
  const auto weigh = [&](Aggregate aggregate, bool count_empty, double count) {
    token_weights({aggregate, count_empty, count, 10.0}, lengths, 3, w);
    return std::vector<double>(w, w + 3);
  };
  using V = std::vector<double>;
  EXPECT_EQ(weigh(Aggregate::kTokenMean, false, kNan), (V{0.2, 0.2, 0.2}));
  EXPECT_EQ(weigh(Aggregate::kTokenMean, false, 8.0), (V{0.125, 0.125, 0.125}));
  EXPECT_EQ(weigh(Aggregate::kTokenSum, false, kNan), (V{1.0, 1.0, 1.0}));
  EXPECT_EQ(weigh(Aggregate::kSeqMeanTokenMean, false, kNan), (V{0.125, 0.0, 0.5}));
  EXPECT_EQ(weigh(Aggregate::kSeqMeanTokenSum, true, kNan), (V{1.0 / 3, 1.0 / 3, 1.0 / 3}));
  EXPECT_EQ(weigh(Aggregate::kSeqMeanTokenSumNorm, false, 4.0), (V{0.025, 0.025, 0.025}));
  const int64_t none[3] = {0, 0, 0};
  token_weights({Aggregate::kTokenMean, false, kNan, 1.0}, none, 3, w);
  EXPECT_EQ(w[0], 0.0);
}

TEST(ValueLoss, ClippedErrorAndGradient) {
  float values[3] = {1.0f, 3.0f, float(kNan)}, old[3] = {1.0f, 1.0f, 0.0f};
  float returns[3] = {2.0f, 4.0f, float(kNan)}, grad[3] = {9.0f, 9.0f, 9.0f};
  const bool mask[3] = {true, true, false};
  const auto view = [](float* x) { return TokenView{x, DType::kFloat32, 3, 1}; };
  ValueInputs in{};
  in.sequences.batch = 1;
  in.sequences.width = 3;
  in.sequences.mask = mask;
  in.values = view(values);
  in.old_values = view(old);
  in.returns = view(returns);
  in.clip = 0.5;
  ValueSums sums[1];
  double loss, metrics[kValueMetrics], weights[1];
  value_loss_rows(in, sums, 0, 1);
  value_loss_total(in, {Aggregate::kTokenMean, false, kNan, 1.0}, sums, &loss, metrics, weights);
  // errors 1 and max(1, (1.5 - 4)^2) = 6.25; the second is clipped and has no gradient
  EXPECT_DOUBLE_EQ(loss, 0.5 * (1.0 + 6.25) / 2);
  EXPECT_DOUBLE_EQ(metrics[0], 0.5);
  value_loss_backward_rows(in, 3.0, weights, grad, 0, 1);
  EXPECT_FLOAT_EQ(grad[0], -1.5f);
  EXPECT_EQ(grad[1], 0.0f);
  EXPECT_EQ(grad[2], 0.0f);
}

TEST(ImportanceWeights, ProductOverTheSequence) {
  float logprobs[4] = {-1.0f, -2.0f, float(kNan), -1.0f}, sampler[4] = {-1.5f, -1.75f, 0.0f, -9.0f};
  const bool mask[4] = {true, true, false, true};
  float weights[2];
  WeightInputs in{};
  in.sequences.batch = 2;
  in.sequences.width = 2;
  in.sequences.mask = mask;
  in.logprobs = {logprobs, DType::kFloat32, 2, 1};
  in.sampler_logprobs = {sampler, DType::kFloat32, 2, 1};
  in.per_sequence = in.truncate = true;
  in.high = 2.0;
  in.log_ratio_clamp = 20.0;
  in.weights = weights;
  WeightSums sums[2];
  importance_weights_rows(in, sums, 0, 2);
  double metrics[kWeightMetrics];
  importance_weights_total(in, sums, metrics);
  EXPECT_NEAR(weights[0], std::exp(0.25), 1e-6);
  EXPECT_EQ(weights[1], 2.0f);
  EXPECT_NEAR(metrics[0], (2 * std::exp(0.25) + 2.0) / 3, 1e-6);
  EXPECT_NEAR(metrics[5], 1.0 / 3, 1e-12);
}
