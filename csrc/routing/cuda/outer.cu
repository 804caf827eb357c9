// Sums along the rows of a mixture: each thread has four features and up to sixteen ranks. Rows of
// one mixture are shared out among blocks, whose sums are added in a fixed order.
#include "routing/cuda/parts.cuh"

namespace oneshot::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int64_t kSpan = 4 * kThreads;
constexpr int kRowsOfPart = 128;  // rows of a mixture, on average, that one block adds up
constexpr int kOuterRows = 32;    // rows in shared memory at a time

// out [parts, mixtures, rank, features]: each part adds up its share of the rows.
template <typename T, int kRanksOfBlock>
__global__ void __launch_bounds__(kThreads)
    outer_kernel(RowMixtures rows, RowList list, const Real<T>* left, const T* right, Real<T>* out,
                 int64_t features, int64_t rank, int64_t parts, bool aligned) {
  using R = Real<T>;
  ONESHOT_SHARED(int64_t, where, kOuterRows);
  ONESHOT_SHARED(Four<R>, factors, kOuterRows * kRanksOfBlock / 4);
  const int64_t spans = (features + kSpan - 1) / kSpan;
  const int64_t blocks = (rank + kRanksOfBlock - 1) / kRanksOfBlock;
  for (int64_t task = blockIdx.x; task < parts * rows.mixtures * blocks * spans;
       task += gridDim.x) {
    const int64_t f = task % spans * kSpan + threadIdx.x * 4, past = features - f;
    const int64_t first_rank = task / spans % blocks * kRanksOfBlock;
    const int64_t u = task / spans / blocks % rows.mixtures;
    const int64_t part = task / spans / blocks / rows.mixtures;
    const int64_t start = list.starts[u], total = (list.starts[u + 1] - start) * rows.repeat;
    const int64_t begin = total * part / parts, end = total * (part + 1) / parts;
    R sums[kRanksOfBlock][4] = {};
    for (int64_t from = begin; from < end; from += kOuterRows) {
      const int count = int(end - from < kOuterRows ? end - from : kOuterRows);
      __syncthreads();
      if (int(threadIdx.x) < count) {
        const int64_t local = from + threadIdx.x, group = local / rows.repeat;
        where[threadIdx.x] = list.order[start + group] * rows.repeat + local - group * rows.repeat;
      }
      __syncthreads();
      for (int s = int(threadIdx.x); s < count * kRanksOfBlock; s += kThreads) {
        const int64_t own = first_rank + s % kRanksOfBlock;
        factors[s / 4].number[s % 4] =
            own < rank ? left[where[s / kRanksOfBlock] * rank + own] : R(0);
      }
      __syncthreads();
      if (past <= 0) continue;
      for (int i = 0; i < count; ++i) {
        R v[4], of_row[kRanksOfBlock];
        load_four(right + where[i] * features + f, past, aligned, v);
        read_numbers(factors, i * kRanksOfBlock, of_row);
#pragma unroll
        for (int r = 0; r < kRanksOfBlock; ++r) {
#pragma unroll
          for (int c = 0; c < 4; ++c) sums[r][c] += of_row[r] * v[c];
        }
      }
    }
    if (past <= 0) continue;
#pragma unroll
    for (int r = 0; r < kRanksOfBlock; ++r) {
      if (first_rank + r >= rank) break;
      R* to = out + ((part * rows.mixtures + u) * rank + first_rank + r) * features + f;
      store_four(to, past, aligned, sums[r]);
    }
  }
}

template <typename R>
__global__ void add_parts_kernel(const R* partial, R* out, int64_t count, int64_t parts) {
  const int64_t stride = int64_t(gridDim.x) * blockDim.x;
  for (int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; i < count; i += stride) {
    R sum = R(0);
    for (int64_t part = 0; part < parts; ++part) sum += partial[part * count + i];
    out[i] = sum;
  }
}

}  // namespace

// Blocks that share the rows of one mixture; decided by sizes alone, so that sums keep their order.
int64_t outer_parts(const RowMixtures& rows) {
  const int64_t average = rows.rows() / (rows.mixtures > 0 ? rows.mixtures : 1);
  return average < kRowsOfPart ? 1 : average / kRowsOfPart;
}

template <typename T>
cudaError_t outer(const RowMixtures& rows, const RowList& list, const void* left, const void* right,
                  void* partial, void* out, int64_t features, int64_t rank, cudaStream_t stream) {
  using R = Real<T>;
  constexpr int kRanksOfBlock = sizeof(R) == 8 ? 8 : 16;
  const int64_t parts = outer_parts(rows), count = rows.mixtures * rank * features;
  void* to = parts == 1 ? out : partial;
  const bool aligned = four_aligned<T>(right, features) && four_aligned<R>(to, features);
  const int64_t spans = (features + kSpan - 1) / kSpan;
  const int64_t blocks = (rank + kRanksOfBlock - 1) / kRanksOfBlock;
  ONESHOT_RETURN_IF_FAILED(
      launch(outer_kernel<T, kRanksOfBlock>, blocks_for(parts * rows.mixtures * blocks * spans),
             kThreads, 0, stream, rows, list, static_cast<const R*>(left),
             static_cast<const T*>(right), static_cast<R*>(to), features, rank, parts, aligned));
  if (parts == 1) return cudaSuccess;
  return launch(add_parts_kernel<R>, blocks_for((count + 255) / 256), 256, 0, stream,
                static_cast<const R*>(partial), static_cast<R*>(out), count, parts);
}

#define DEFINE(T)                                                                             \
  template cudaError_t outer<T>(const RowMixtures&, const RowList&, const void*, const void*, \
                                void*, void*, int64_t, int64_t, cudaStream_t);
ONESHOT_FOR_EACH_TYPE(DEFINE)
#undef DEFINE

}  // namespace oneshot::cuda
