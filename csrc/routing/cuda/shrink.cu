// Sums along the features for four ranks at a time: lanes walk the features, four each.
#include "routing/cuda/parts.cuh"

namespace oneshot::cuda {
namespace {

constexpr int kRanks = 4;  // a warp sums so many ranks of each of its rows

// How the warps of a block share a tile: rows by ranks by features.
template <int kRowsOfWarp, int kRowWarps, int kRankWarps, int kSpanWarps>
struct ShrinkShape {
  static constexpr int kRows = kRowsOfWarp, kRowsOfTile = kRowsOfWarp * kRowWarps;
  static constexpr int kRanksOfBlock = kRanks * kRankWarps;
  static constexpr int kSpans = kSpanWarps;
  static constexpr int kWarps = kRowWarps * kRankWarps * kSpanWarps, kThreads = 32 * kWarps;
  static constexpr int kSums = kRows * kRanks;  // of a warp
};
using ShrinkOne = ShrinkShape<1, 1, 1, 4>;
using ShrinkTile = ShrinkShape<4, 4, 4, 1>;  // more rows a warp do not fit into registers

template <typename T, typename Shape>
__global__ void __launch_bounds__(Shape::kThreads)
    shrink_kernel(RowTiles tiles, const T* x, const Real<T>* mixture, Real<T>* out,
                  int64_t features, int64_t rank, double scaling, bool aligned) {
  using R = Real<T>;
  ONESHOT_SHARED(int64_t, where, Shape::kRowsOfTile);
  ONESHOT_SHARED(R, partial, Shape::kWarps * Shape::kSums);
  const int lane = int(threadIdx.x) % 32, warp = int(threadIdx.x) / 32;
  const int span = warp % Shape::kSpans, part = warp / Shape::kSpans;
  constexpr int kRankWarps = Shape::kRanksOfBlock / kRanks;
  const int row0 = part / kRankWarps * Shape::kRows, rank0 = part % kRankWarps * kRanks;
  const int64_t blocks = (rank + Shape::kRanksOfBlock - 1) / Shape::kRanksOfBlock;
  for (int64_t task = blockIdx.x; task < tiles.count * blocks; task += gridDim.x) {
    const int64_t first = task % blocks * Shape::kRanksOfBlock;
    const int64_t u = locate(tiles, task / blocks, where);
    if (u < 0) continue;
    // Rows and ranks that do not exist are read as their neighbours and not written.
    const T* rows[Shape::kRows];
    const R* factors[kRanks];
#pragma unroll
    for (int i = 0; i < Shape::kRows; ++i) {
      rows[i] = x + (where[row0 + i] < 0 ? where[0] : where[row0 + i]) * features;
    }
#pragma unroll
    for (int r = 0; r < kRanks; ++r) {
      const int64_t own = first + rank0 + r;
      factors[r] = mixture + (u * rank + (own < rank ? own : rank - 1)) * features;
    }
    R sums[Shape::kSums] = {};
#pragma unroll(Shape::kRows == 1 ? 4 : 1)
    for (int64_t f = (span * 32 + lane) * 4; f < features; f += Shape::kSpans * 128) {
      R a[kRanks][4];
#pragma unroll
      for (int r = 0; r < kRanks; ++r) load_four(factors[r] + f, features - f, aligned, a[r]);
#pragma unroll
      for (int i = 0; i < Shape::kRows; ++i) {
        R v[4];
        load_four(rows[i] + f, features - f, aligned, v);
#pragma unroll
        for (int r = 0; r < kRanks; ++r) {
#pragma unroll
          for (int c = 0; c < 4; ++c) sums[i * kRanks + r] += v[c] * a[r][c];
        }
      }
    }
#pragma unroll
    for (int s = 0; s < Shape::kSums; ++s) {
      const R sum = warp_reduce(sums[s], Sum());
      if (lane == 0) partial[warp * Shape::kSums + s] = sum;
    }
    __syncthreads();
    for (int s = int(threadIdx.x); s < Shape::kWarps / Shape::kSpans * Shape::kSums;
         s += Shape::kThreads) {
      const int of_part = s / Shape::kSums, sum_of = s % Shape::kSums;
      const int64_t row = where[of_part / kRankWarps * Shape::kRows + sum_of / kRanks];
      const int64_t own = first + of_part % kRankWarps * kRanks + sum_of % kRanks;
      R sum = R(0);
      for (int w = 0; w < Shape::kSpans; ++w) {
        sum += partial[(of_part * Shape::kSpans + w) * Shape::kSums + sum_of];
      }
      if (row >= 0 && own < rank) out[row * rank + own] = R(scaling) * sum;
    }
  }
}

}  // namespace

template <typename T>
cudaError_t shrink(const RowTiles& tiles, const void* x, const void* mixture, void* out,
                   int64_t features, int64_t rank, double scaling, cudaStream_t stream) {
  using R = Real<T>;
  const bool aligned = four_aligned<T>(x, features) && four_aligned<R>(mixture, features);
  const auto run = [&](auto kernel, int ranks, int threads) {
    return launch(kernel, blocks_for(tiles.count * ((rank + ranks - 1) / ranks)), unsigned(threads),
                  0, stream, tiles, static_cast<const T*>(x), static_cast<const R*>(mixture),
                  static_cast<R*>(out), features, rank, scaling, aligned);
  };
  using Tile = ShrinkTile;
  static_assert(Tile::kRowsOfTile == kTileRows);
  return tiles.size == 1
             ? run(shrink_kernel<T, ShrinkOne>, ShrinkOne::kRanksOfBlock, ShrinkOne::kThreads)
             : run(shrink_kernel<T, Tile>, Tile::kRanksOfBlock, Tile::kThreads);
}

#define DEFINE(T)                                                                           \
  template cudaError_t shrink<T>(const RowTiles&, const void*, const void*, void*, int64_t, \
                                 int64_t, double, cudaStream_t);
ONESHOT_FOR_EACH_TYPE(DEFINE)
#undef DEFINE

}  // namespace oneshot::cuda
