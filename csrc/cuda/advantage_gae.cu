// Generalised advantage estimation: one warp scans kSequences sequences side by side, one a lane,
// in tiles of kSteps steps. All 32 lanes load a tile with adjacent addresses and turn it round
// through shared memory; the next tile is on its way while this one is scanned. Each lane's scan is
// the CPU's, in the CPU's order and without contraction: the same bits for any padding or packing.
#include "cuda/advantage.cuh"
#include "cuda/device.cuh"

namespace oneshot::cuda {
namespace {

// Few sequences a warp, because the chain of a scan is what takes time: 1024 sequences then occupy
// 128 multiprocessors.
constexpr int kSequences = 8;
constexpr int kSteps = 64;
constexpr int kPitch = kSteps + 1;  // lanes that walk rows of this length meet different banks
constexpr int kParts = kSteps / 32;

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

template <typename T>
struct Tile {
  T rewards[kSequences * kParts], values[kSequences * kParts];
  bool kept[kSequences * kParts];
};

template <typename T>
__device__ __forceinline__ void load_tile(const GaeArgs<T>& args, const Place* places, int64_t t0,
                                          Tile<T>& tile) {
#pragma unroll
  for (int i = 0; i < kSequences * kParts; ++i) {
    const Place& place = places[i / kParts];
    const int64_t t = t0 + (i % kParts) * 32 + threadIdx.x;
    const bool there = t >= 0 && t < place.steps;
    tile.rewards[i] = there ? args.rewards[place.rewards + t] : T(0);
    tile.values[i] = there ? args.values[place.values + t] : T(0);
    tile.kept[i] = there && (args.mask == nullptr || args.mask[place.mask + t]);
  }
}

template <typename T>
__global__ void __launch_bounds__(32) gae_kernel(GaeArgs<T> args, int64_t tokens) {
  ONESHOT_SHARED(Place, places, kSequences);
  ONESHOT_SHARED(T, rewards, kSequences * kPitch);
  ONESHOT_SHARED(T, values, kSequences * kPitch);
  ONESHOT_SHARED(bool, kept, kSequences* kPitch);
  const int lane = int(threadIdx.x);
  const int64_t stride = int64_t(gridDim.x) * kSequences;
  for (int64_t first = int64_t(blockIdx.x) * kSequences; first < args.sequences; first += stride) {
    const int64_t mine = first + lane;
    const bool scans = lane < kSequences && mine < args.sequences;
    __syncwarp();
    if (lane < kSequences) places[lane] = place_of(args, mine, tokens);
    T next_value = T(0), advantage = T(0);
    if (scans && args.bootstrap != nullptr)
      next_value = args.bootstrap[mine * args.bootstrap_stride];
    __syncwarp();
    int64_t longest = 0;
    for (int s = 0; s < kSequences; ++s) {
      longest = places[s].steps > longest ? places[s].steps : longest;
    }
    Tile<T> tile;
    int64_t t0 = (longest - 1) / kSteps * kSteps;
    if (longest > 0) load_tile(args, places, t0, tile);
    for (; longest > 0 && t0 >= 0; t0 -= kSteps) {
      for (int i = 0; i < kSequences * kParts; ++i) {
        const int at = i / kParts * kPitch + (i % kParts) * 32 + lane;
        rewards[at] = tile.rewards[i], values[at] = tile.values[i], kept[at] = tile.kept[i];
      }
      __syncwarp();
      load_tile(args, places, t0 - kSteps, tile);
      if (scans) {
        for (int t = kSteps - 1; t >= 0; --t) {
          const int at = lane * kPitch + t;
          const T value = values[at];
          if (kept[at]) {
            const T delta =
                exact_sub(exact_add(rewards[at], exact_mul(args.gamma, next_value)), value);
            advantage = exact_add(delta, exact_mul(args.gamma_lam, advantage));
            next_value = value;
          }
          rewards[at] = kept[at] ? advantage : T(0);
          values[at] = kept[at] ? exact_add(advantage, value) : T(0);
        }
      }
      __syncwarp();
      for (int i = 0; i < kSequences * kParts; ++i) {
        const Place& place = places[i / kParts];
        const int step = (i % kParts) * 32 + lane;
        if (t0 + step >= place.steps) continue;
        args.advantages[place.out + t0 + step] = rewards[i / kParts * kPitch + step];
        args.returns[place.out + t0 + step] = values[i / kParts * kPitch + step];
      }
      __syncwarp();
    }
  }
}

}  // namespace

template <typename T>
cudaError_t gae(const GaeArgs<T>& args, int64_t tokens, cudaStream_t stream) {
  if (args.sequences == 0) return tokens == 0 ? cudaSuccess : cudaErrorInvalidValue;
  return launch(gae_kernel<T>, blocks_for((args.sequences + kSequences - 1) / kSequences), 32, 0,
                stream, args, tokens);
}

template cudaError_t gae(const GaeArgs<float>&, int64_t, cudaStream_t);
template cudaError_t gae(const GaeArgs<double>&, int64_t, cudaStream_t);

}  // namespace oneshot::cuda
