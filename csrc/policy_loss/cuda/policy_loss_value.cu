// The value loss: one block a sequence, then one block for the batch.
#include "policy_loss/cuda/policy_loss_parts.cuh"
#include "policy_loss/cuda/policy_terms.cuh"

namespace oneshot::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;

template <typename R>
struct ValueError {
  R value, goal, error;  // the error that counts: plain, or the clipped one
  bool clipped;
};

template <typename R>
__device__ __forceinline__ ValueError<R> value_error(const ValueInputs& in, int64_t b, int64_t at) {
  ValueError<R> e{token_value<R>(in.values, b, at), token_value<R>(in.returns, b, at), R(0), false};
  const R plain = e.value - e.goal;
  e.error = plain;
  if (in.old_values.data == nullptr) return e;
  const R old = token_value<R>(in.old_values, b, at), clip = R(in.clip);
  const R bounded = clamp(e.value, old - clip, old + clip) - e.goal;
  e.clipped = bounded * bounded > plain * plain;
  if (e.clipped) e.error = bounded;
  if (old != old) e.error = old;
  return e;
}

template <typename R>
__global__ void value_rows_kernel(ValueInputs in, int64_t tokens, ValueSums* sums) {
  ONESHOT_SHARED(double, scratch, kWarps);
  ONESHOT_SHARED(int64_t, counts, kWarps);
  const Sequences& s = in.sequences;
  for (int64_t b = blockIdx.x; b < s.batch; b += gridDim.x) {
    const TokenRange range = token_range(s, b, tokens);
    ValueSums sum{};
    for_counted(s, range, [&](int64_t t) {
      const ValueError<R> e = value_error<R>(in, b, range.first + t);
      const double value = double(e.value), goal = double(e.goal), plain = double(e.value - e.goal);
      sum.loss += double(R(0.5) * e.error * e.error);
      sum.value += value;
      sum.target += goal;
      sum.target_square += goal * goal;
      sum.error += plain;
      sum.error_square += plain * plain;
      ++sum.tokens;
      sum.clipped += e.clipped;
    });
    sum.loss = block_sum(sum.loss, scratch);
    sum.value = block_sum(sum.value, scratch);
    sum.target = block_sum(sum.target, scratch);
    sum.target_square = block_sum(sum.target_square, scratch);
    sum.error = block_sum(sum.error, scratch);
    sum.error_square = block_sum(sum.error_square, scratch);
    sum.tokens = block_sum(sum.tokens, counts);
    sum.clipped = block_sum(sum.clipped, counts);
    if (threadIdx.x == 0) sums[b] = sum;
  }
}

template <typename R>
__global__ void value_total_kernel(Normalizer how, DeviceScalar given, int64_t batch,
                                   const ValueSums* sums, R* loss, R* metrics, double* weights) {
  ONESHOT_SHARED(double, scratch, kWarps);
  ValueSums all{};
  double tokens = 0.0, clipped = 0.0, filled = 0.0, loss_sum = 0.0;
  for (int64_t b = threadIdx.x; b < batch; b += kThreads) {
    const ValueSums& s = sums[b];
    all.value += s.value;
    all.target += s.target;
    all.target_square += s.target_square;
    all.error += s.error;
    all.error_square += s.error_square;
    tokens += double(s.tokens);
    clipped += double(s.clipped);
    filled += s.tokens > 0 ? 1.0 : 0.0;
  }
  tokens = block_sum(tokens, scratch);
  filled = block_sum(filled, scratch);
  const Weighting weight(how.aggregate, how.count_empty, scalar_or_nan(given), how.max_length,
                         tokens, filled, batch);
  for (int64_t b = threadIdx.x; b < batch; b += kThreads) {
    weights[b] = weight(sums[b].tokens);
    loss_sum += weights[b] * sums[b].loss;
  }
  loss_sum = block_sum(loss_sum, scratch);
  const auto mean = [&](double x) { return ratio_or_zero(block_sum(x, scratch), tokens); };
  const double clip_share = mean(clipped), value = mean(all.value), target = mean(all.target);
  const double error = mean(all.error);
  const double spread = mean(all.target_square) - target * target;
  const double residual = mean(all.error_square) - error * error;
  if (threadIdx.x != 0) return;
  *loss = R(loss_sum);
  metrics[0] = R(clip_share);
  metrics[1] = R(value);
  metrics[2] = R(target);
  metrics[3] = R(spread == 0.0 ? 0.0 : 1.0 - residual / spread);
  metrics[4] = R(tokens);
}

template <typename R>
__global__ void value_backward_kernel(ValueInputs in, int64_t tokens, DeviceScalar grad_loss,
                                      const double* weights, void* by_values) {
  const Sequences& s = in.sequences;
  const double upstream = scalar_or_nan(grad_loss);
  for (int64_t b = blockIdx.x; b < s.batch; b += gridDim.x) {
    const TokenRange range = token_range(s, b, tokens);
    const R scale = R(upstream * weights[b]);
    for (int64_t t = threadIdx.x; t < range.length; t += kThreads) {
      R gradient = R(0);
      if (s.mask == nullptr || s.mask[range.dense + t]) {
        const ValueError<R> e = value_error<R>(in, b, range.first + t);
        if (!e.clipped) gradient = scale * e.error;
      }
      put_value(by_values, in.values.dtype, range.dense + t, gradient);
    }
  }
}

template <typename R>
cudaError_t forward(const ValueInputs& in, const Normalizer& how, int64_t tokens,
                    DeviceScalar count, ValueSums* sums, void* loss, void* metrics, double* weights,
                    cudaStream_t stream) {
  const int64_t batch = in.sequences.batch;
  if (batch > 0) {
    ONESHOT_RETURN_IF_FAILED(
        launch(value_rows_kernel<R>, blocks_for(batch), kThreads, 0, stream, in, tokens, sums));
  }
  return launch(value_total_kernel<R>, 1, kThreads, 0, stream, how, count, batch, sums,
                static_cast<R*>(loss), static_cast<R*>(metrics), weights);
}

}  // namespace

cudaError_t value_loss(const ValueInputs& in, const Normalizer& how, int64_t tokens,
                       DeviceScalar count, ValueSums* sums, void* loss, void* metrics,
                       double* weights, cudaStream_t stream) {
  const auto run = in.sequences.wide ? forward<double> : forward<float>;
  return run(in, how, tokens, count, sums, loss, metrics, weights, stream);
}

cudaError_t value_loss_backward(const ValueInputs& in, int64_t tokens, DeviceScalar grad_loss,
                                const double* weights, void* by_values, cudaStream_t stream) {
  if (in.sequences.batch == 0) return cudaSuccess;
  const auto kernel =
      in.sequences.wide ? value_backward_kernel<double> : value_backward_kernel<float>;
  return launch(kernel, blocks_for(in.sequences.batch), kThreads, 0, stream, in, tokens, grad_loss,
                weights, by_values);
}

}  // namespace oneshot::cuda
