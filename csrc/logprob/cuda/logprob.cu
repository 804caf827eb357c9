#include "logprob/cuda/logprob.cuh"

#include "logprob/cuda/row.cuh"

namespace oneshot::cuda {
namespace {

__host__ __device__ inline int64_t segments_of(int64_t vocab) {
  return (vocab + kSegment - 1) / kSegment;
}

template <typename T>
__device__ __forceinline__ const bool* keep_row(const LogprobInput& in, int64_t row) {
  return in.keep_mask == nullptr ? nullptr : in.keep_mask + in.keep_rows.offset(row);
}

// One block a segment: its sums. Rows the mask leaves out are not read.
template <typename T>
__global__ void __launch_bounds__(kLogprobThreads, sizeof(T) == 8 ? 2 : 4)
    logprob_segments_kernel(LogprobInput in, int64_t rows, SoftmaxSums<Real<T>>* partials) {
  using R = Real<T>;
  ONESHOT_SHARED(SoftmaxSums<R>, scratch, kLogprobThreads / 32);
  const int64_t segments = segments_of(in.vocab);
  const R scale = R(kLog2E / in.temperature);
  for (int64_t task = blockIdx.x; task < rows * segments; task += gridDim.x) {
    const int64_t row = task / segments;
    if (in.mask != nullptr && !in.mask[row]) continue;
    const T* logits = static_cast<const T*>(in.logits) + in.rows.offset(row);
    const bool* keep = keep_row<T>(in, row);
    const bool aligned = aligned16(logits);
    const int64_t begin = (task - row * segments) * kSegment;
    SoftmaxSums<R> sums{minus_infinity<R>(), R(0), R(0)};
    for (int64_t chunk = begin; chunk < begin + kSegment && chunk < in.vocab; chunk += kChunk<T>) {
      R x[kPerThread<T>];
      load_chunk(logits, keep, chunk, in.vocab, aligned, x);
      R high = sums.high;
#pragma unroll
      for (int i = 0; i < kPerThread<T>; ++i) high = larger(high, x[i]);
      sums = raised(sums, high, scale);
      // With nothing but -inf so far any finite shift gives the sums 0.
      const R shift = high == minus_infinity<R>() ? R(0) : high;
#pragma unroll
      for (int i = 0; i < kPerThread<T>; ++i) {
        const R z = (x[i] - shift) * scale, e = power_of_two(z);
        sums.total += e;
        sums.weighted = fma(larger(z, kFarBelow<R>), e, sums.weighted);
      }
    }
    sums = lanes_merged<32>(sums, scale);
    __syncthreads();
    if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = sums;
    __syncthreads();
    if (threadIdx.x >= 32) continue;
    constexpr int kWarps = kLogprobThreads / 32;
    sums = lanes_merged<kWarps>(scratch[threadIdx.x % kWarps], scale);
    if (threadIdx.x == 0) partials[task] = sums;
  }
}

// One warp a row: puts its segments together and writes the results.
template <typename T>
__global__ void logprob_rows_kernel(LogprobForward args, int64_t rows,
                                    const SoftmaxSums<Real<T>>* partials) {
  using R = Real<T>;
  const LogprobInput& in = args.input;
  auto* logprobs = static_cast<R*>(args.logprobs);
  auto* entropy = static_cast<R*>(args.entropy);
  auto* stats = static_cast<R*>(args.stats);
  const int lane = int(threadIdx.x) % 32;
  const int64_t segments = segments_of(in.vocab), k = in.targets_per_row;
  const int64_t stride = int64_t(gridDim.x) * (kLogprobThreads / 32);
  const R scale = R(kLog2E / in.temperature), inverse = R(1.0 / in.temperature);
  for (int64_t row = int64_t(blockIdx.x) * (kLogprobThreads / 32) + threadIdx.x / 32; row < rows;
       row += stride) {
    if (in.mask != nullptr && !in.mask[row]) {
      for (int64_t j = lane; j < k; j += 32) logprobs[row * k + j] = R(0);
      if (lane < kLogprobStats) stats[row * kLogprobStats + lane] = R(0);
      if (lane == 0) entropy[row] = R(0);
      continue;
    }
    SoftmaxSums<R> sums{minus_infinity<R>(), R(0), R(0)};
    for (int64_t s = lane; s < segments; s += 32) {
      const SoftmaxSums<R> part = partials[row * segments + s];
      const R high = larger(sums.high, part.high);
      const SoftmaxSums<R> a = raised(sums, high, scale), b = raised(part, high, scale);
      sums = {high, a.total + b.total, a.weighted + b.weighted};
    }
    sums = lanes_merged<32>(sums, scale);
    // A row of nothing but -inf is no distribution: NaN, as in torch.log_softmax.
    if (sums.high == minus_infinity<R>()) sums.total = R(NAN);
    const R log_total = R(log(sums.total)), mean = sums.weighted * R(kLn2) / sums.total;
    if (lane == 0) {
      entropy[row] = log_total - mean;
      stats[row * kLogprobStats] = sums.high;
      stats[row * kLogprobStats + 1] = sums.total;
      stats[row * kLogprobStats + 2] = mean;
    }
    const T* logits = static_cast<const T*>(in.logits) + in.rows.offset(row);
    const bool* keep = keep_row<T>(in, row);
    for (int64_t j = lane; j < k; j += 32) {
      const int64_t target = in.targets[row * k + j];
      require(target >= 0 && target < in.vocab);
      const bool kept = keep == nullptr || keep[target];
      const R x = kept ? to_real(logits[target]) : minus_infinity<R>();
      logprobs[row * k + j] = (x - sums.high) * inverse - log_total;
    }
  }
}

// What backward knows of a row.
template <typename R>
struct RowGradient {
  R high, total, mean, by_entropy, by_logprobs;  // by_logprobs: summed over the targets
  bool silent;
};

template <typename R>
__device__ RowGradient<R> row_gradient(const LogprobBackward& args, int64_t row, R* scratch) {
  const auto* by_logprobs = static_cast<const R*>(args.grad_logprobs);
  const auto* by_entropy = static_cast<const R*>(args.grad_entropy);
  const auto* logprobs = static_cast<const R*>(args.logprobs);
  const auto* stats = static_cast<const R*>(args.stats) + row * kLogprobStats;
  const int64_t k = args.input.targets_per_row;
  RowGradient<R> g{stats[0], stats[1], stats[2], R(0), R(0), true};
  if (by_entropy != nullptr) g.by_entropy = by_entropy[row];
  g.silent = g.by_entropy == R(0);
  if (by_logprobs == nullptr) return g;
  R sum = R(0), loud = R(0);
  for (int64_t j = threadIdx.x; j < k; j += blockDim.x) {
    const R upstream = by_logprobs[row * k + j];
    if (upstream != R(0)) loud = R(1);
    // A log-probability of -inf is a constant: it passes no gradient.
    if (logprobs[row * k + j] != minus_infinity<R>()) sum += upstream;
  }
  g.by_logprobs = block_sum(sum, scratch);
  g.silent = block_sum(loud, scratch) == R(0) && g.silent;
  return g;
}

// Adds the targets' own gradient inside [begin, end): each distinct target is written once more,
// complete, from its log-probability (in place, its logit is gone by now).
template <typename T>
__device__ void write_targets(const LogprobBackward& args, int64_t row,
                              const RowGradient<Real<T>>& g, int64_t begin, int64_t end, T* out) {
  using R = Real<T>;
  const int64_t k = args.input.targets_per_row;
  const int64_t* targets = args.input.targets + row * k;
  const auto* upstream = static_cast<const R*>(args.grad_logprobs) + row * k;
  const auto* logprobs = static_cast<const R*>(args.logprobs) + row * k;
  for (int64_t j = threadIdx.x; j < k; j += blockDim.x) {
    const int64_t target = targets[j];
    require(target >= 0 && target < args.input.vocab);
    if (target < begin || target >= end || logprobs[j] == minus_infinity<R>()) continue;
    bool first = true;
    for (int64_t i = 0; i < j; ++i) first = first && targets[i] != target;
    if (!first) continue;
    R own = R(0);
    for (int64_t i = j; i < k; ++i) own += targets[i] == target ? upstream[i] : R(0);
    const R p = R(exp(logprobs[j])), y = logprobs[j] + R(log(g.total));
    const R by_entropy = p == R(0) ? R(0) : p * (g.mean - y) * g.by_entropy;
    out[target] =
        from_real<T>((by_entropy - p * g.by_logprobs + own) * R(1.0 / args.input.temperature));
  }
}

// One block a segment: reads the logits once, writes the gradient once, possibly over them.
template <typename T>
__global__ void __launch_bounds__(kLogprobThreads, sizeof(T) == 8 ? 2 : 3)
    logprob_backward_kernel(LogprobBackward args, int64_t rows) {
  using R = Real<T>;
  constexpr int kCount = Vector<T>::kCount;
  ONESHOT_SHARED(R, scratch, kLogprobThreads / 32);
  const LogprobInput& in = args.input;
  const int64_t segments = segments_of(in.vocab);
  const R scale = R(kLog2E / in.temperature), inverse = R(1.0 / in.temperature);
  for (int64_t task = blockIdx.x; task < rows * segments; task += gridDim.x) {
    const int64_t row = task / segments;
    const int64_t begin = (task - row * segments) * kSegment;
    const int64_t end = begin + kSegment < in.vocab ? begin + kSegment : in.vocab;
    const T* logits = static_cast<const T*>(in.logits) + in.rows.offset(row);
    T* out = static_cast<T*>(args.grad_logits) + args.grad_rows.offset(row);
    RowGradient<R> g{};
    g.silent = true;
    if (in.mask == nullptr || in.mask[row]) g = row_gradient<R>(args, row, scratch);
    // An element is 2^z (offset + slope z): p (by_entropy (mean - y) - by_logprobs) / temperature.
    const R unit = inverse / g.total;
    const R offset = (g.mean * g.by_entropy - g.by_logprobs) * unit;
    const R slope = -R(kLn2) * g.by_entropy * unit;
    for (int64_t chunk = begin; chunk < end; chunk += kChunk<T>) {
      R x[kPerThread<T>];
      if (!g.silent) {
        load_chunk(logits, keep_row<T>(in, row), chunk, in.vocab, aligned16(logits), x);
      }
#pragma unroll
      for (int v = 0; v < kPerThread<T> / kCount; ++v) {
        const int64_t start = vector_start<T>(chunk, v);
        Vector<T> result;
#pragma unroll
        for (int e = 0; e < kCount; ++e) {
          R gradient = R(0);
          if (!g.silent) {
            const R z = (x[v * kCount + e] - g.high) * scale;
            gradient = power_of_two(z) * fma(slope, larger(z, kFarBelow<R>), offset);
          }
          result.element[e] = from_real<T>(gradient);
        }
        if (aligned16(out) && start + kCount <= in.vocab) {
          store_vector(out + start, result);
        } else {
#pragma unroll
          for (int e = 0; e < kCount; ++e) {
            if (start + e < in.vocab) out[start + e] = result.element[e];
          }
        }
      }
    }
    __syncthreads();
    if (!g.silent && args.grad_logprobs != nullptr) write_targets<T>(args, row, g, begin, end, out);
  }
}

template <typename T>
cudaError_t forward(const LogprobForward& args, int64_t rows, void* workspace,
                    cudaStream_t stream) {
  auto* partials = static_cast<SoftmaxSums<Real<T>>*>(workspace);
  ONESHOT_RETURN_IF_FAILED(launch(logprob_segments_kernel<T>,
                                  blocks_for(rows * segments_of(args.input.vocab)), kLogprobThreads,
                                  0, stream, args.input, rows, partials));
  constexpr int kWarps = kLogprobThreads / 32;
  return launch(logprob_rows_kernel<T>, blocks_for((rows + kWarps - 1) / kWarps), kLogprobThreads,
                0, stream, args, rows, partials);
}

template <typename T>
cudaError_t backward(const LogprobBackward& args, int64_t rows, cudaStream_t stream) {
  return launch(logprob_backward_kernel<T>, blocks_for(rows * segments_of(args.input.vocab)),
                kLogprobThreads, 0, stream, args, rows);
}

}  // namespace

int64_t logprob_workspace(DType dtype, int64_t rows, int64_t vocab) {
  const int64_t bytes =
      dtype == DType::kFloat64 ? sizeof(SoftmaxSums<double>) : sizeof(SoftmaxSums<float>);
  return rows * segments_of(vocab) * bytes;
}

cudaError_t logprob_forward(const LogprobForward& args, int64_t rows, void* workspace,
                            cudaStream_t stream) {
  if (rows == 0) return cudaSuccess;
  switch (args.input.dtype) {
    case DType::kFloat32:
      return forward<float>(args, rows, workspace, stream);
    case DType::kFloat64:
      return forward<double>(args, rows, workspace, stream);
    case DType::kBFloat16:
      return forward<BFloat16>(args, rows, workspace, stream);
    case DType::kFloat16:
      return forward<Float16>(args, rows, workspace, stream);
  }
  return cudaErrorInvalidValue;
}

cudaError_t logprob_backward(const LogprobBackward& args, int64_t rows, cudaStream_t stream) {
  if (rows == 0) return cudaSuccess;
  switch (args.input.dtype) {
    case DType::kFloat32:
      return backward<float>(args, rows, stream);
    case DType::kFloat64:
      return backward<double>(args, rows, stream);
    case DType::kBFloat16:
      return backward<BFloat16>(args, rows, stream);
    case DType::kFloat16:
      return backward<Float16>(args, rows, stream);
  }
  return cudaErrorInvalidValue;
}

}  // namespace oneshot::cuda
