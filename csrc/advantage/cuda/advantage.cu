#include "advantage/cuda/advantage.cuh"

#include "cuda/device.cuh"

namespace oneshot::cuda {
namespace {

constexpr int kThreads = 128;

__device__ __forceinline__ bool ignored(const GroupRule& rule, double score) {
  return rule.ignore_nan && score != score;
}

// One warp a row: its score and how many places count.
template <typename T>
__global__ void row_scores_kernel(TokenRows<T> tokens, double* scores, int64_t* counted) {
  const int lane = int(threadIdx.x) % 32;
  const int64_t warps = int64_t(gridDim.x) * (kThreads / 32);
  for (int64_t row = int64_t(blockIdx.x) * (kThreads / 32) + threadIdx.x / 32; row < tokens.rows;
       row += warps) {
    const int64_t first = row * tokens.steps;
    double sum = 0.0;
    int64_t count = 0;
    for (int64_t t = lane; t < tokens.steps; t += 32) {
      if (tokens.mask != nullptr && !tokens.mask[first + t]) continue;
      sum += double(tokens.rewards[first + t]);
      ++count;
    }
    sum = warp_reduce(sum, Sum());
    count = warp_reduce(count, Sum());
    if (lane == 0) scores[row] = sum, counted[row] = count;
  }
}

// One block: the standard deviation of all scores, in two passes.
__global__ void batch_std_kernel(const double* scores, int64_t rows, GroupRule rule,
                                 double* result) {
  ONESHOT_SHARED(double, sums, 32);
  ONESHOT_SHARED(int64_t, counts, 32);
  double sum = 0.0, squares = 0.0;
  int64_t count = 0;
  for (int64_t i = threadIdx.x; i < rows; i += blockDim.x) {
    if (ignored(rule, scores[i])) continue;
    sum += scores[i];
    ++count;
  }
  count = block_sum(count, counts);
  const double mean = block_sum(sum, sums) / double(count);
  for (int64_t i = threadIdx.x; i < rows; i += blockDim.x) {
    if (ignored(rule, scores[i])) continue;
    squares += (scores[i] - mean) * (scores[i] - mean);
  }
  squares = block_sum(squares, sums);
  if (threadIdx.x == 0) *result = count == 1 ? 1.0 : sqrt(squares / double(count - rule.ddof));
}

struct Members {
  int64_t begin, end;
  bool some;  // false: another block does this group
};

// Which rows the block's group g consists of. With ids, g is a row, and the group belongs to the
// first row that carries its id.
__device__ Members members_of(const RowGroups& groups, int64_t g, int64_t rows, int64_t* scratch) {
  if (groups.ids != nullptr) {
    for (int64_t i = 0; i < g; i += blockDim.x) {
      const int64_t other = i + threadIdx.x;
      const int64_t same = other < g && groups.ids[other] == groups.ids[g];
      if (block_sum(same, scratch) > 0) return {0, 0, false};
    }
    return {g, rows, true};
  }
  if (groups.sizes == nullptr) return {g * groups.size, (g + 1) * groups.size, true};
  int64_t before = 0;
  for (int64_t i = threadIdx.x; i <= g; i += blockDim.x) {
    require(groups.sizes[i] >= 0 && groups.sizes[i] <= rows);
    if (i < g) before += groups.sizes[i];
  }
  const int64_t begin = block_sum(before, scratch), end = begin + groups.sizes[g];
  require(end <= rows && (g + 1 < groups.size_count || end == rows));
  return {begin, end, true};
}

__global__ void score_groups_kernel(const double* scores, const int64_t* lengths, int64_t rows,
                                    RowGroups groups, int64_t group_count, GroupRule rule,
                                    const double* batch_std, double* advantages) {
  ONESHOT_SHARED(double, sums, 32);
  ONESHOT_SHARED(int64_t, counts, 32);
  for (int64_t g = blockIdx.x; g < group_count; g += gridDim.x) {
    const Members members = members_of(groups, g, rows, counts);
    if (!members.some) continue;
    const auto belongs = [&](int64_t i) {
      return groups.ids == nullptr || groups.ids[i] == groups.ids[g];
    };
    double sum = 0.0, weight = 0.0, weighted = 0.0;
    int64_t size = 0;
    for (int64_t i = members.begin + threadIdx.x; i < members.end; i += blockDim.x) {
      if (!belongs(i) || ignored(rule, scores[i])) continue;
      const auto length = double(lengths[i]);
      sum += scores[i], weight += length, weighted += length * scores[i], ++size;
    }
    size = block_sum(size, counts);
    const double mean = block_sum(sum, sums) / double(size);
    const bool alone = size == 1;
    double baseline = 0.0, factor = 1.0, divisor = 1.0;
    if (alone) {
      baseline = rule.raw_singleton ? 0.0 : mean;
    } else if (rule.baseline == Baseline::kMean || rule.baseline == Baseline::kLeaveOneOut) {
      baseline = mean;
      // r - mean of the others = (r - mean) n / (n - 1)
      if (rule.baseline == Baseline::kLeaveOneOut) factor = double(size) / double(size - 1);
    } else if (rule.baseline == Baseline::kLengthWeighted) {
      weight = block_sum(weight, sums);
      baseline = block_sum(weighted, sums) / weight;
    }
    if (rule.scale == Scale::kGroupStd) {
      double squares = 0.0;
      for (int64_t i = members.begin + threadIdx.x; i < members.end; i += blockDim.x) {
        if (!belongs(i) || ignored(rule, scores[i])) continue;
        squares += (scores[i] - mean) * (scores[i] - mean);
      }
      squares = block_sum(squares, sums);
      divisor = (alone ? 1.0 : sqrt(squares / double(size - rule.ddof))) + rule.eps;
    } else if (rule.scale == Scale::kBatchStd) {
      divisor = *batch_std + rule.eps;
    }
    for (int64_t i = members.begin + threadIdx.x; i < members.end; i += blockDim.x) {
      if (!belongs(i)) continue;
      advantages[i] = ignored(rule, scores[i]) ? 0.0 : (scores[i] - baseline) * factor / divisor;
    }
  }
}

template <typename T>
__global__ void write_rows_kernel(TokenRows<T> tokens, const double* advantages) {
  const int64_t count = tokens.rows * tokens.steps, stride = int64_t(gridDim.x) * blockDim.x;
  for (int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; i < count; i += stride) {
    const bool kept = tokens.mask == nullptr || tokens.mask[i];
    tokens.out[i] = kept ? T(advantages[i / tokens.steps]) : T(0);
  }
}

// ---- whiten: sums of fixed blocks, folded in a fixed order

constexpr int kWhitenThreads = 256;

struct WhitenStats {
  double mean, scale;
};

template <typename T>
__global__ void whiten_reduce_kernel(WhitenArgs<T> args, int power, const WhitenStats* stats,
                                     WhitenPartial* partials, int64_t blocks) {
  ONESHOT_SHARED(double, sums, 32);
  ONESHOT_SHARED(int64_t, counts, 32);
  const double center = power == 1 ? 0.0 : stats->mean;
  for (int64_t block = blockIdx.x; block < blocks; block += gridDim.x) {
    double sum = 0.0;
    int64_t count = 0;
    const int64_t begin = block * kWhitenBlock, last = begin + kWhitenBlock;
    const int64_t end = last < args.count ? last : args.count;
    for (int64_t i = begin + threadIdx.x; i < end; i += kWhitenThreads) {
      if (args.mask != nullptr && !args.mask[i]) continue;
      const double deviation = double(args.values[i]) - center;
      sum += power == 1 ? deviation : deviation * deviation;
      ++count;
    }
    sum = block_sum(sum, sums);
    count = block_sum(count, counts);
    if (threadIdx.x == 0) partials[block].sum = sum, partials[block].count = count;
  }
}

__global__ void whiten_fold_kernel(const WhitenPartial* partials, int64_t blocks, int power,
                                   double eps, WhitenStats* stats) {
  ONESHOT_SHARED(double, sums, 32);
  ONESHOT_SHARED(int64_t, counts, 32);
  double sum = 0.0;
  int64_t count = 0;
  for (int64_t i = threadIdx.x; i < blocks; i += kWhitenThreads) {
    sum += partials[i].sum;
    count += partials[i].count;
  }
  sum = block_sum(sum, sums);
  count = block_sum(count, counts);
  if (threadIdx.x != 0) return;
  if (power == 1) {
    stats->mean = count > 0 ? sum / double(count) : 0.0;
  } else {
    stats->scale = 1.0 / sqrt((count > 1 ? sum / double(count - 1) : 0.0) + eps);
  }
}

template <typename T>
__global__ void whiten_write_kernel(WhitenArgs<T> args, const WhitenStats* stats) {
  const double mean = stats->mean, scale = stats->scale, shift = args.shift_mean ? 0.0 : mean;
  const int64_t stride = int64_t(gridDim.x) * blockDim.x;
  for (int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; i < args.count; i += stride) {
    const bool kept = args.mask == nullptr || args.mask[i];
    args.out[i] = kept ? T((double(args.values[i]) - mean) * scale + shift) : T(0);
  }
}

}  // namespace

int64_t group_advantages_workspace(int64_t rows) {
  return 8 * (3 * rows + 1);  // scores, advantages, counts; the batch's standard deviation
}

int64_t whiten_workspace(int64_t count) {
  return int64_t(sizeof(WhitenPartial)) * whiten_blocks(count) + int64_t(sizeof(WhitenStats));
}

template <typename T>
cudaError_t group_advantages(const TokenRows<T>& tokens, const int64_t* lengths,
                             const RowGroups& groups, const GroupRule& rule, void* workspace,
                             cudaStream_t stream) {
  if (tokens.rows == 0 && groups.sizes == nullptr) return cudaSuccess;
  auto* scores = static_cast<double*>(workspace);
  double *advantages = scores + tokens.rows, *spread = advantages + tokens.rows;
  auto* counted = reinterpret_cast<int64_t*>(spread + 1);
  ONESHOT_RETURN_IF_FAILED(launch(row_scores_kernel<T>,
                                  blocks_for((tokens.rows + kThreads / 32 - 1) / (kThreads / 32)),
                                  kThreads, 0, stream, tokens, scores, counted));
  if (rule.scale == Scale::kBatchStd) {
    ONESHOT_RETURN_IF_FAILED(
        launch(batch_std_kernel, 1, 1024, 0, stream, scores, tokens.rows, rule, spread));
  }
  const int64_t count = groups.ids != nullptr     ? tokens.rows
                        : groups.sizes != nullptr ? groups.size_count
                                                  : tokens.rows / groups.size;
  if (count == 0) return tokens.rows == 0 ? cudaSuccess : cudaErrorInvalidValue;
  ONESHOT_RETURN_IF_FAILED(launch(score_groups_kernel, blocks_for(count), kThreads, 0, stream,
                                  scores, lengths != nullptr ? lengths : counted, tokens.rows,
                                  groups, count, rule, spread, advantages));
  if (tokens.steps == 0) return cudaSuccess;
  return launch(write_rows_kernel<T>,
                blocks_for((tokens.rows * tokens.steps + kThreads - 1) / kThreads), kThreads, 0,
                stream, tokens, advantages);
}

template <typename T>
cudaError_t whiten(const WhitenArgs<T>& args, double eps, void* workspace, cudaStream_t stream) {
  if (args.count == 0) return cudaSuccess;
  const int64_t blocks = whiten_blocks(args.count);
  auto* partials = static_cast<WhitenPartial*>(workspace);
  auto* stats = reinterpret_cast<WhitenStats*>(partials + blocks);
  for (int power = 1; power <= 2; ++power) {
    ONESHOT_RETURN_IF_FAILED(launch(whiten_reduce_kernel<T>, blocks_for(blocks), kWhitenThreads, 0,
                                    stream, args, power, stats, partials, blocks));
    ONESHOT_RETURN_IF_FAILED(launch(whiten_fold_kernel, 1, kWhitenThreads, 0, stream, partials,
                                    blocks, power, eps, stats));
  }
  return launch(whiten_write_kernel<T>,
                blocks_for((args.count + kWhitenThreads - 1) / kWhitenThreads), kWhitenThreads, 0,
                stream, args, stats);
}

template cudaError_t group_advantages(const TokenRows<float>&, const int64_t*, const RowGroups&,
                                      const GroupRule&, void*, cudaStream_t);
template cudaError_t group_advantages(const TokenRows<double>&, const int64_t*, const RowGroups&,
                                      const GroupRule&, void*, cudaStream_t);
template cudaError_t whiten(const WhitenArgs<float>&, double, void*, cudaStream_t);
template cudaError_t whiten(const WhitenArgs<double>&, double, void*, cudaStream_t);

}  // namespace oneshot::cuda
