// Sums along the rank, in order: each thread has four features of all rows of a tile.
#include "routing/cuda/parts.cuh"

namespace oneshot::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int64_t kSpan = 4 * kThreads;
constexpr int kRankChunk = 32;

template <typename T, int kRows>
__global__ void __launch_bounds__(kThreads)
    expand_kernel(RowTiles tiles, const Real<T>* shrunk, const Real<T>* mixture, const T* base,
                  T* y, int64_t features, int64_t rank, bool aligned) {
  using R = Real<T>;
  ONESHOT_SHARED(int64_t, where, kTileRows);
  ONESHOT_SHARED(Four<R>, factors, kRankChunk * kRows / 4);
  const int64_t spans = (features + kSpan - 1) / kSpan, parts = tiles.size / kRows;
  for (int64_t task = blockIdx.x; task < tiles.count * parts * spans; task += gridDim.x) {
    const int64_t f = task % spans * kSpan + threadIdx.x * 4, left = features - f;
    const int64_t u = locate(tiles, task / spans / parts, where);
    if (u < 0) continue;
    const int64_t* own = where + task / spans % parts * kRows;
    R sums[kRows][4] = {};
    for (int64_t from = 0; from < rank; from += kRankChunk) {
      const int count = int(rank - from < kRankChunk ? rank - from : kRankChunk);
      __syncthreads();
      for (int s = int(threadIdx.x); s < count * kRows; s += kThreads) {
        const int64_t row = own[s % kRows];
        factors[s / 4].number[s % 4] = row < 0 ? R(0) : shrunk[row * rank + from + s / kRows];
      }
      __syncthreads();
      if (left <= 0) continue;
#pragma unroll(kRows == 1 ? 8 : 1)
      for (int r = 0; r < count; ++r) {
        R b[4], of_rank[kRows];
        load_four(mixture + (u * rank + from + r) * features + f, left, aligned, b);
        read_numbers(factors, r * kRows, of_rank);
#pragma unroll
        for (int i = 0; i < kRows; ++i) {
#pragma unroll
          for (int c = 0; c < 4; ++c) sums[i][c] += of_rank[i] * b[c];
        }
      }
    }
    if (left <= 0) continue;
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      if (own[i] < 0) continue;
      if (base != nullptr) {
        R addend[4];
        load_four(base + own[i] * features + f, left, aligned, addend);
#pragma unroll
        for (int c = 0; c < 4; ++c) sums[i][c] += addend[c];
      }
      store_four(y + own[i] * features + f, left, aligned, sums[i]);
    }
  }
}

}  // namespace

template <typename T>
cudaError_t expand(const RowTiles& tiles, const void* shrunk, const void* mixture, const void* base,
                   void* y, int64_t features, int64_t rank, cudaStream_t stream) {
  using R = Real<T>;
  constexpr int kRows = sizeof(R) == 8 ? 8 : kTileRows;  // more doubles do not fit into registers
  const bool aligned = four_aligned<T>(y, features) && four_aligned<R>(mixture, features) &&
                       (base == nullptr || four_aligned<T>(base, features));
  const int64_t spans = (features + kSpan - 1) / kSpan;
  const auto run = [&](auto kernel, int64_t parts) {
    return launch(kernel, blocks_for(tiles.count * parts * spans), kThreads, 0, stream, tiles,
                  static_cast<const R*>(shrunk), static_cast<const R*>(mixture),
                  static_cast<const T*>(base), static_cast<T*>(y), features, rank, aligned);
  };
  return tiles.size == 1 ? run(expand_kernel<T, 1>, 1)
                         : run(expand_kernel<T, kRows>, kTileRows / kRows);
}

#define DEFINE(T)                                                                               \
  template cudaError_t expand<T>(const RowTiles&, const void*, const void*, const void*, void*, \
                                 int64_t, int64_t, cudaStream_t);
ONESHOT_FOR_EACH_TYPE(DEFINE)
#undef DEFINE

}  // namespace oneshot::cuda
