// Generalised advantage estimation: a block takes kSequences sequences through tiles of kSteps
// steps, the last first. One warp scans a tile in shared memory, a sequence in each of its first
// lanes, while the other warps write out the tile behind it and bring the one ahead, with adjacent
// addresses. Each scan is the CPU's, in the CPU's order and without contraction: the same bits for
// any padding or packing.
#include "advantage/cuda/advantage.cuh"
#include "cuda/device.cuh"

namespace oneshot::cuda {
namespace {

// Few sequences a block, because the chain of a scan is what takes time: 1024 sequences then occupy
// 128 multiprocessors.
constexpr int kSequences = 8;
constexpr int kSteps = 64;
constexpr int kCarriers = 128;  // threads of the warps that do not scan
constexpr int kEach = kSequences * kSteps / kCarriers;
// Elements of a row in shared memory: lanes that read 16 bytes of different rows meet different
// banks.
template <typename T>
constexpr int kPitch = kSteps + 16 / int(sizeof(T));
constexpr int kKeptPitch = kSteps + 4;

struct Place {
  int64_t rewards, values, mask, out, steps;
};

template <typename T>
__device__ Place place_of(const GaeArgs<T>& args, int64_t sequence, int64_t tokens) {
  if (sequence >= args.sequences) return {0, 0, 0, 0, 0};
  if (args.cu_seqlens == nullptr) {
    return {sequence * args.reward_stride, sequence * args.value_stride,
            sequence * args.mask_stride, sequence * args.steps, args.steps};
  }
  const int64_t begin = args.cu_seqlens[sequence], end = args.cu_seqlens[sequence + 1];
  require(begin >= 0 && begin <= end && end <= tokens && (sequence > 0 || begin == 0) &&
          (sequence + 1 < args.sequences || end == tokens));
  return {begin, begin, begin, begin, end - begin};
}

// What a scan reads and writes at once.
template <typename T>
struct alignas(16) Quad {
  static constexpr int kCount = 16 / int(sizeof(T));
  T element[kCount];
};
struct alignas(4) Flags {
  bool element[4];
};

template <typename T>
__device__ __forceinline__ T* row_of(Quad<T>* rows, int row) {
  return reinterpret_cast<T*>(rows) + row * kPitch<T>;
}

template <typename T>
struct Tile {
  Quad<T> rewards[kSequences * kPitch<T> / Quad<T>::kCount];  // advantages, once scanned
  Quad<T> values[kSequences * kPitch<T> / Quad<T>::kCount];   // returns
  Flags kept[kSequences * kKeptPitch / 4];
};

// Steps of all sequences, in the registers of the carriers.
template <typename T>
struct Load {
  T rewards[kEach], values[kEach];
  bool kept[kEach];

  __device__ __forceinline__ void from(const GaeArgs<T>& args, const Place* places, int64_t t0,
                                       int carrier) {
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      const int at = i * kCarriers + carrier;
      const Place& place = places[at / kSteps];
      const int64_t t = t0 + at % kSteps;
      const bool there = t >= 0 && t < place.steps;
      rewards[i] = there ? args.rewards[place.rewards + t] : T(0);
      values[i] = there ? args.values[place.values + t] : T(0);
      kept[i] = there && (args.mask == nullptr || args.mask[place.mask + t]);
    }
  }

  __device__ __forceinline__ void put(Tile<T>& tile, int carrier) const {
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      const int row = (i * kCarriers + carrier) / kSteps, step = carrier % kSteps;
      row_of(tile.rewards, row)[step] = rewards[i];
      row_of(tile.values, row)[step] = values[i];
      reinterpret_cast<bool*>(tile.kept)[row * kKeptPitch + step] = kept[i];
    }
  }
};

template <typename T>
__device__ __forceinline__ void write_tile(const GaeArgs<T>& args, const Place* places, int64_t t0,
                                           Tile<T>& tile, int carrier) {
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
    const int row = (i * kCarriers + carrier) / kSteps, step = carrier % kSteps;
    const Place& place = places[row];
    if (t0 + step >= place.steps) continue;
    args.advantages[place.out + t0 + step] = row_of(tile.rewards, row)[step];
    args.returns[place.out + t0 + step] = row_of(tile.values, row)[step];
  }
}

// Backwards through the tile, whose rewards and values become advantages and returns.
template <typename T>
__device__ __forceinline__ void scan_tile(const GaeArgs<T>& args, Tile<T>& tile, int lane,
                                          T& next_value, T& advantage) {
  constexpr int kCount = Quad<T>::kCount, kQuads = 4;
  Quad<T>* rewards = tile.rewards + lane * kPitch<T> / kCount;
  Quad<T>* values = tile.values + lane * kPitch<T> / kCount;
  const Flags* kept = tile.kept + lane * kKeptPitch / 4;
#pragma unroll 1
  for (int first = kSteps / kCount - kQuads; first >= 0; first -= kQuads) {
    Quad<T> reward[kQuads], value[kQuads];
    Flags counts[kQuads * kCount / 4];
#pragma unroll
    for (int q = 0; q < kQuads; ++q) reward[q] = rewards[first + q], value[q] = values[first + q];
#pragma unroll
    for (int f = 0; f < kQuads * kCount / 4; ++f) counts[f] = kept[first * kCount / 4 + f];
#pragma unroll
    for (int i = kQuads * kCount - 1; i >= 0; --i) {
      T &r = reward[i / kCount].element[i % kCount], &v = value[i / kCount].element[i % kCount];
      const bool counted = counts[i / 4].element[i % 4];
      const T delta = exact_sub(exact_add(r, exact_mul(args.gamma, next_value)), v);
      const T here = exact_add(delta, exact_mul(args.gamma_lam, advantage));
      advantage = counted ? here : advantage;
      next_value = counted ? v : next_value;
      r = counted ? here : T(0);
      v = counted ? exact_add(here, v) : T(0);
    }
#pragma unroll
    for (int q = 0; q < kQuads; ++q) rewards[first + q] = reward[q], values[first + q] = value[q];
  }
}

template <typename T>
__global__ void __launch_bounds__(32 + kCarriers) gae_kernel(GaeArgs<T> args, int64_t tokens) {
  ONESHOT_SHARED(Place, places, kSequences);
  ONESHOT_SHARED(Tile<T>, tiles, 2);
  const int lane = int(threadIdx.x), carrier = lane - 32;
  const int64_t stride = int64_t(gridDim.x) * kSequences;
  for (int64_t first = int64_t(blockIdx.x) * kSequences; first < args.sequences; first += stride) {
    const int64_t mine = first + lane;
    const bool scans = lane < kSequences && mine < args.sequences;
    __syncthreads();  // the sequences before have been written
    if (lane < kSequences) places[lane] = place_of(args, mine, tokens);
    T next_value = T(0), advantage = T(0);
    if (scans && args.bootstrap != nullptr)
      next_value = args.bootstrap[mine * args.bootstrap_stride];
    __syncthreads();
    int64_t longest = 0;
    for (int s = 0; s < kSequences; ++s) {
      longest = places[s].steps > longest ? places[s].steps : longest;
    }
    const int64_t last = (longest + kSteps - 1) / kSteps - 1;
    Load<T> load;
    if (carrier >= 0) {
      load.from(args, places, last * kSteps, carrier);
      load.put(tiles[last & 1], carrier);
      load.from(args, places, (last - 1) * kSteps, carrier);
    }
    __syncthreads();
    for (int64_t tile = last; tile >= 0; --tile) {
      if (carrier >= 0) {
        Tile<T>& other = tiles[(tile + 1) & 1];
        if (tile < last) write_tile(args, places, (tile + 1) * kSteps, other, carrier);
        load.put(other, carrier);
        load.from(args, places, (tile - 2) * kSteps, carrier);
      } else if (scans) {
        scan_tile(args, tiles[tile & 1], lane, next_value, advantage);
      }
      __syncthreads();
    }
    if (carrier >= 0 && last >= 0) write_tile(args, places, 0, tiles[0], carrier);
  }
}

}  // namespace

template <typename T>
cudaError_t gae(const GaeArgs<T>& args, int64_t tokens, cudaStream_t stream) {
  if (args.sequences == 0) return tokens == 0 ? cudaSuccess : cudaErrorInvalidValue;
  return launch(gae_kernel<T>, blocks_for((args.sequences + kSequences - 1) / kSequences),
                32 + kCarriers, 0, stream, args, tokens);
}

template cudaError_t gae(const GaeArgs<float>&, int64_t, cudaStream_t);
template cudaError_t gae(const GaeArgs<double>&, int64_t, cudaStream_t);

}  // namespace oneshot::cuda
