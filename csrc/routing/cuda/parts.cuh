// The parts of routed LoRA: tiles of rows that take the same mixture, and three products with one
// short side, which do everything.
#pragma once

#include "routing/cuda/routing.cuh"
#include "routing/cuda/vectors.cuh"

namespace oneshot::cuda {

struct RowTiles {
  RowMixtures rows;
  RowList list;  // order == nullptr: tiles inside a group of adjacent rows
  int64_t size, per_group, count;
};

// Tiles by the list need one at most for each mixture more than the rows fill.
inline RowTiles tiles_from(const RowMixtures& rows, const RowList& list) {
  return {rows, list, kTileRows, 0, rows.rows() / kTileRows + rows.mixtures};
}

inline RowTiles tiles_inside_groups(const RowMixtures& rows, int64_t size) {
  const int64_t per_group = (rows.repeat + size - 1) / size;
  return {rows, {}, size, per_group, rows.groups * per_group};
}

// out[row] = scaling * x[row] mixture[u]^T, [rows, rank]: x A, and grad B^T (shrink.cu)
template <typename T>
cudaError_t shrink(const RowTiles&, const void* x, const void* mixture, void* out, int64_t features,
                   int64_t rank, double scaling, cudaStream_t);

// y[row] = base[row] + shrunk[row] mixture[u]: u B, and the gradient of x (expand.cu)
template <typename T>
cudaError_t expand(const RowTiles&, const void* shrunk, const void* mixture, const void* base,
                   void* y, int64_t features, int64_t rank, cudaStream_t);

// out[u] = sum over the rows of mixture u of left^T right, [mixtures, rank, features]: the
// gradients of A and B (outer.cu). partial: outer_parts times the size of out, unless that
// is 1.
template <typename T>
cudaError_t outer(const RowMixtures&, const RowList&, const void* left, const void* right,
                  void* partial, void* out, int64_t features, int64_t rank, cudaStream_t);
int64_t outer_parts(const RowMixtures&);

// The last u with bounds[u] <= x.
__device__ __forceinline__ int64_t last_below(const int64_t* bounds, int64_t count, int64_t x) {
  int64_t low = 0, high = count;
  while (high - low > 1) {
    const int64_t middle = low + (high - low) / 2;
    (bounds[middle] <= x ? low : high) = middle;
  }
  return low;
}

// The mixture of a tile, -1 if it is past the last; where[i]: its rows, adjacent ones first, -1
// where it has none. All threads of the block come here.
__device__ inline int64_t locate(const RowTiles& tiles, int64_t tile, int64_t* where) {
  const RowMixtures& rows = tiles.rows;
  int64_t u, first, end;  // among the rows of the mixture, or of the group
  int64_t group = 0;
  if (tiles.list.order == nullptr) {
    group = tile / tiles.per_group;
    u = rows.mixture_of[group];
    require(u >= 0 && u < rows.mixtures);
    first = (tile - group * tiles.per_group) * tiles.size;
    end = rows.repeat;
  } else {
    if (tile >= tiles.list.tiles_of[rows.mixtures]) return -1;
    u = last_below(tiles.list.tiles_of, rows.mixtures, tile);
    first = (tile - tiles.list.tiles_of[u]) * tiles.size;
    end = (tiles.list.starts[u + 1] - tiles.list.starts[u]) * rows.repeat;
  }
  __syncthreads();  // whoever reads the tile before is done
  if (threadIdx.x < unsigned(tiles.size)) {
    const int64_t local = first + threadIdx.x;
    int64_t row = -1;
    if (local < end && tiles.list.order == nullptr) {
      row = group * rows.repeat + local;
    } else if (local < end) {
      const int64_t of_mixture = local / rows.repeat;
      row = tiles.list.order[tiles.list.starts[u] + of_mixture] * rows.repeat + local -
            of_mixture * rows.repeat;
    }
    where[threadIdx.x] = row;
  }
  __syncthreads();
  return u;
}

// The element types each part is compiled for.
#define ONESHOT_FOR_EACH_TYPE(define) define(float) define(double) define(BFloat16) define(Float16)

}  // namespace oneshot::cuda
