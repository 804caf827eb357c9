// Lists the groups of rows mixture by mixture: a counting sort in three launches, stable and
// without atomics. A block ranks the groups of its chunk against each other, one block adds up the
// chunks, and then every group knows its place.
#include "cuda/device.cuh"
#include "routing/cuda/routing.cuh"

namespace oneshot::cuda {
namespace {

constexpr int kChunk = 256;  // groups a block ranks
constexpr int kScanThreads = 512;

// table[chunk, u]: how many groups of the chunk take mixture u; ranks[group]: how many before it in
// its chunk take the same.
__global__ void __launch_bounds__(kChunk)
    rank_groups_kernel(RowMixtures rows, int64_t chunks, int64_t* table, int64_t* ranks) {
  ONESHOT_SHARED(int64_t, mixtures, kChunk);
  for (int64_t chunk = blockIdx.x; chunk < chunks; chunk += gridDim.x) {
    const int64_t group = chunk * kChunk + threadIdx.x;
    const int64_t u = group < rows.groups ? rows.mixture_of[group] : -1;
    require(group >= rows.groups || (u >= 0 && u < rows.mixtures));
    for (int64_t v = threadIdx.x; v < rows.mixtures; v += kChunk) {
      table[chunk * rows.mixtures + v] = 0;
    }
    __syncthreads();  // whoever reads the chunk before is done
    mixtures[threadIdx.x] = u;
    __syncthreads();
    int before = 0, after = 0;
    for (int i = 0; i < kChunk; ++i) {
      const bool same = mixtures[i] == u;
      before += same && i < int(threadIdx.x);
      after += same && i > int(threadIdx.x);
    }
    if (group >= rows.groups) continue;
    ranks[group] = before;
    if (after == 0) table[chunk * rows.mixtures + u] = before + 1;
  }
}

// Sum over the threads before this one; `total` gets the sum over all.
__device__ int64_t sum_before(int64_t value, int64_t* scratch, int64_t& total) {
  const int lane = int(threadIdx.x) % 32, warp = int(threadIdx.x) / 32;
  int64_t sum = value;
  for (int by = 1; by < 32; by *= 2) {
    const int64_t other = __shfl_up_sync(kAllLanes, sum, unsigned(by));
    if (lane >= by) sum += other;
  }
  __syncthreads();  // whoever reads an earlier result is done
  if (lane == 31) scratch[warp] = sum;
  __syncthreads();
  int64_t before = sum - value;
  total = 0;
  for (int w = 0; w < kScanThreads / 32; ++w) {
    if (w < warp) before += scratch[w];
    total += scratch[w];
  }
  return before;
}

// One block: table becomes how many groups of earlier chunks take the same mixture.
__global__ void __launch_bounds__(kScanThreads, 1)
    place_mixtures_kernel(RowMixtures rows, int64_t chunks, int64_t* table, int64_t* starts,
                          int64_t* tiles_of) {
  ONESHOT_SHARED(int64_t, scratch, kScanThreads / 32);
  int64_t groups_before = 0, tiles_before = 0;
  for (int64_t first = 0; first < rows.mixtures; first += kScanThreads) {
    const int64_t u = first + threadIdx.x;
    int64_t count = 0;
    for (int64_t chunk = 0; chunk < chunks && u < rows.mixtures; ++chunk) {
      const int64_t here = table[chunk * rows.mixtures + u];
      table[chunk * rows.mixtures + u] = count;
      count += here;
    }
    const int64_t tiles = (count * rows.repeat + kTileRows - 1) / kTileRows;
    int64_t all_groups, all_tiles;
    const int64_t start = groups_before + sum_before(count, scratch, all_groups);
    const int64_t tile = tiles_before + sum_before(tiles, scratch, all_tiles);
    if (u < rows.mixtures) starts[u] = start, tiles_of[u] = tile;
    groups_before += all_groups, tiles_before += all_tiles;
  }
  if (threadIdx.x == 0)
    starts[rows.mixtures] = groups_before, tiles_of[rows.mixtures] = tiles_before;
}

__global__ void __launch_bounds__(kChunk)
    order_groups_kernel(RowMixtures rows, const int64_t* table, const int64_t* ranks,
                        const int64_t* starts, int64_t* order) {
  const int64_t stride = int64_t(gridDim.x) * kChunk;
  for (int64_t group = int64_t(blockIdx.x) * kChunk + threadIdx.x; group < rows.groups;
       group += stride) {
    const int64_t u = rows.mixture_of[group];
    order[starts[u] + table[group / kChunk * rows.mixtures + u] + ranks[group]] = group;
  }
}

int64_t chunks_of(const RowMixtures& rows) { return (rows.groups + kChunk - 1) / kChunk; }

}  // namespace

int64_t list_rows_workspace(const RowMixtures& rows) {
  const int64_t numbers =
      2 * rows.groups + 2 * (rows.mixtures + 1) + chunks_of(rows) * rows.mixtures;
  return numbers * int64_t(sizeof(int64_t));
}

cudaError_t list_rows(const RowMixtures& rows, void* workspace, RowList& list,
                      cudaStream_t stream) {
  const int64_t chunks = chunks_of(rows);
  auto* order = static_cast<int64_t*>(workspace);
  int64_t* ranks = order + rows.groups;
  int64_t* starts = ranks + rows.groups;
  int64_t* tiles_of = starts + rows.mixtures + 1;
  int64_t* table = tiles_of + rows.mixtures + 1;
  list = {order, starts, tiles_of};
  ONESHOT_RETURN_IF_FAILED(launch(rank_groups_kernel, blocks_for(chunks), kChunk, 0, stream, rows,
                                  chunks, table, ranks));
  ONESHOT_RETURN_IF_FAILED(launch(place_mixtures_kernel, 1, kScanThreads, 0, stream, rows, chunks,
                                  table, starts, tiles_of));
  return launch(order_groups_kernel, blocks_for(chunks), kChunk, 0, stream, rows,
                static_cast<const int64_t*>(table), static_cast<const int64_t*>(ranks),
                static_cast<const int64_t*>(starts), order);
}

}  // namespace oneshot::cuda
