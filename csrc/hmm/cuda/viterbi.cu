// The best path: sums and maxima in double, as the definition has them, so that ties are exact.
#include "hmm/cuda/paths.cuh"
#include "hmm/cuda/tile.cuh"

namespace oneshot::cuda {
namespace {

constexpr int kWarps = 4;
constexpr int kBlockThreads = 512;
constexpr int kStaged = 1024;  // back-pointers that a warp holds in shared memory

// The largest so far, and the lowest state that has it. A NaN is passed over.
struct Best {
  double score;
  int state;

  static __device__ __forceinline__ Best none() { return {kNever, 0}; }

  __device__ __forceinline__ void meet(double other, int from) {
    if (other > score || (other == score && from < state)) score = other, state = from;
  }
};

// What is left of a sequence when its last scores are there: one warp follows the back-pointers
// [length, states], a stage at a time. `score` and `state` are those of the best end.
template <typename Index>
__device__ void trace(const Index* pointers, int64_t states, int64_t length, int64_t steps,
                      double score, int64_t state, Index* staged, int64_t* to) {
  const int lane = int(threadIdx.x) % 32;
  const int64_t used = score > kNever ? length : 0;
  PathWriter path(to, used);
  path.fill(used, steps);
  const int64_t rows = kStaged / states < 32 ? kStaged / states : 32;
  for (int64_t end = used; end > 0;) {
    // Of the first step there are no pointers.
    const int64_t first = rows == 0 ? end - 1 : end - rows > 1 ? end - rows : 1;
    __syncwarp();
    for (int64_t i = lane; rows > 0 && i < (end - first) * states; i += 32) {
      staged[i] = pointers[first * states + i];
    }
    __syncwarp();
    const Index* from = rows == 0 ? pointers + first * states : staged;
    for (; end > first; --end) {
      path.put(end - 1, state);
      if (end > 1) state = int64_t(from[(end - 1 - first) * states + state]);
    }
    if (end == 1) {
      path.put(0, state);
      end = 0;
    }
  }
}

template <typename T>
__device__ T score_of(int64_t length, bool bad, double score) {
  return bad ? T(NAN) : length == 0 ? T(0) : T(score);
}

// ---- one warp for each sequence

template <typename T>
struct Memory {
  T matrices[kTileRoom];
  T emissions[kTileSteps<1> * 32];
  double scores[2 * 32];  // the two are written in turn
  uint8_t staged[kStaged];
};

template <typename T, int kStates>
__device__ void warp_path(const HmmInput<T>& in, int64_t b, Memory<T>& memory, uint8_t* pointers,
                          int64_t* path, T* score) {
  const int states = int(in.states), pitch = states | 1, lane = int(threadIdx.x) % 32;
  const bool own = lane < states;
  const int column = own ? lane : states - 1;
  const int64_t length = length_of(in, b);
  const int tile_length = tile_steps<kStates>(states, in.homogeneous);
  const auto counted = [&](int64_t first) {
    return first >= length ? 0 : int(length - first < tile_length ? length - first : tile_length);
  };
  bool bad = false;
  const auto noted = [&](T x) {
    bad |= flawed(x);
    return x;
  };
  double mine = kNever;
  if (own && length > 0) {
    mine = double(noted(in.log_init[b * in.init_stride + lane])) +
           double(noted(emissions_of(in, b, 0)[lane]));
  }
  __syncwarp();  // the sequence before has been read
  if (in.homogeneous && length > 1) {
    const T* matrix = matrix_into(in, b, 1);
    for (int i = lane; i < states * states; i += 32) {
      memory.matrices[i / states * pitch + i % states] = noted(matrix[i]);
    }
  }
  Tile<T, kStates> tile;
  int64_t t = 1;
  int buffer = 0;
  for (tile.load(in, b, t, counted(t), !in.homogeneous); t < length;) {
    const int count = counted(t);
    __syncwarp();  // the tile before has been read
#pragma unroll
    for (int c = 0; c < kTileSteps<kStates>; ++c)
      memory.emissions[c * 32 + lane] = tile.emissions[c];
    if (!in.homogeneous) tile.put_matrices(memory.matrices, count, states, noted);
    tile.load(in, b, t + count, counted(t + count), !in.homogeneous);
    for (int c = 0; c < count; ++c, ++t) {
      double* scores = memory.scores + buffer;
      scores[lane] = mine;
      buffer ^= 32;
      __syncwarp();
      const T* matrix = memory.matrices + (in.homogeneous ? 0 : c * states * pitch) + column;
      Best best = Best::none();
#pragma unroll 2
      for (int i = 0; i < states; ++i) best.meet(scores[i] + double(matrix[i * pitch]), i);
      if (own) pointers[t * states + lane] = uint8_t(best.state);
      mine = best.score + double(noted(memory.emissions[c * 32 + lane]));
    }
  }
  if (own && length > 0) mine += double(noted(final_of(in, b, lane)));
  Best best = Best::none();
  for (int i = 0; i < states; ++i) best.meet(__shfl_sync(kAllLanes, mine, i), i);
  bad = __any_sync(kAllLanes, bad);
  if (lane == 0) score[b] = score_of<T>(length, bad, best.score);
  trace(pointers, states, length, in.steps, bad ? kNever : best.score, best.state, memory.staged,
        path);
}

template <typename T, int kStates>
__global__ void __launch_bounds__(kWarps * 32, 4)
    warp_viterbi_kernel(HmmInput<T> in, uint8_t* pointers, int64_t* path, T* score) {
  ONESHOT_SHARED(Memory<T>, memories, kWarps);
  const int64_t stride = int64_t(gridDim.x) * kWarps;
  for (int64_t b = int64_t(blockIdx.x) * kWarps + threadIdx.x / 32; b < in.batch; b += stride) {
    warp_path<T, kStates>(in, b, memories[threadIdx.x / 32], pointers + b * in.steps * in.states,
                          path + b * in.steps, score);
  }
}

// ---- one block for each sequence

template <typename T, typename Index>
__device__ void block_path(const HmmInput<T>& in, int64_t b, double* scores, Index* pointers,
                           Best* bests, double* scratch, Index* staged, int64_t* path, T* score) {
  const int64_t states = in.states, length = length_of(in, b);
  const int thread = int(threadIdx.x);
  // Threads side by side take columns, `parts` of them the sources of one column in turn.
  const int width = states > kBlockThreads ? kBlockThreads : int(states + 31) / 32 * 32;
  const int parts = kBlockThreads / width, part = thread / width, column = thread % width;
  bool bad = false;
  const auto noted = [&](T x) {
    bad |= flawed(x);
    return double(x);
  };
  for (int64_t j = thread; j < states && length > 0; j += kBlockThreads) {
    scores[j] = noted(in.log_init[b * in.init_stride + j]) + noted(emissions_of(in, b, 0)[j]);
  }
  __syncthreads();
  for (int64_t t = 1; t < length; ++t) {
    const double* from = scores + (t - 1 & 1) * states;
    double* to = scores + (t & 1) * states;
    const T* matrix = matrix_into(in, b, t);
    const T* emissions = emissions_of(in, b, t);
    if (!in.homogeneous && t + 1 < length) {
      prefetch_matrix(matrix_into(in, b, t + 1), states * states);
    }
    for (int64_t start = 0; start < states; start += width) {
      const int64_t j = start + column;
      Best best = Best::none();
      if (part < parts && j < states) {
        for (int64_t i = part; i < states; i += parts) {
          best.meet(from[i] + noted(matrix[i * states + j]), int(i));
        }
      }
      if (parts > 1) {  // then all columns fit, and this loop runs once
        bests[thread] = best;
        __syncthreads();
        for (int p = 1; p < parts && part == 0; ++p) {
          const Best other = bests[p * width + column];
          best.meet(other.score, other.state);
        }
      }
      if (part == 0 && j < states) {
        pointers[t * states + j] = Index(best.state);
        to[j] = best.score + noted(emissions[j]);
      }
    }
    __syncthreads();
  }
  Best best = Best::none();
  const double* last = scores + (length - 1 & 1) * states;
  for (int64_t j = thread; j < states && length > 0; j += kBlockThreads) {
    best.meet(last[j] + noted(final_of(in, b, j)), int(j));
  }
  bests[thread] = best;
  bad = block_reduce(int(bad), reinterpret_cast<int*>(scratch), Largest()) != 0;
  __syncthreads();
  if (thread >= 32) return;
  best = Best::none();
  for (int i = 0; i < kBlockThreads; ++i) best.meet(bests[i].score, bests[i].state);
  if (thread == 0) score[b] = score_of<T>(length, bad, best.score);
  trace(pointers, states, length, in.steps, bad ? kNever : best.score, best.state, staged, path);
}

template <typename T, typename Index>
__global__ void __launch_bounds__(kBlockThreads, 1)
    block_viterbi_kernel(HmmInput<T> in, double* scores, Index* pointers, int64_t* path, T* score) {
  ONESHOT_SHARED(Best, bests, kBlockThreads);
  ONESHOT_SHARED(double, scratch, kBlockThreads / 32);
  ONESHOT_SHARED(Index, staged, kStaged);
  for (int64_t b = blockIdx.x; b < in.batch; b += gridDim.x) {
    block_path(in, b, scores + 2 * b * in.states, pointers + b * in.steps * in.states, bests,
               scratch, staged, path + b * in.steps, score);
    __syncthreads();
  }
}

}  // namespace

template <typename T>
cudaError_t hmm_warp_viterbi(const HmmInput<T>& in, uint8_t* pointers, int64_t* path, T* score,
                             cudaStream_t stream) {
  auto kernel = warp_viterbi_kernel<T, kFewStates>;
  if (in.states > kFewStates) kernel = warp_viterbi_kernel<T, kWarpStates<T>>;
  return launch(kernel, blocks_for((in.batch + kWarps - 1) / kWarps), kWarps * 32, 0, stream, in,
                pointers, path, score);
}

template <typename T, typename Index>
cudaError_t hmm_block_viterbi(const HmmInput<T>& in, double* scores, Index* pointers, int64_t* path,
                              T* score, cudaStream_t stream) {
  return launch(block_viterbi_kernel<T, Index>, blocks_for(in.batch), kBlockThreads, 0, stream, in,
                scores, pointers, path, score);
}

#define ONESHOT_INSTANTIATE(T)                                                                     \
  template cudaError_t hmm_warp_viterbi(const HmmInput<T>&, uint8_t*, int64_t*, T*, cudaStream_t); \
  template cudaError_t hmm_block_viterbi(const HmmInput<T>&, double*, uint8_t*, int64_t*, T*,      \
                                         cudaStream_t);                                            \
  template cudaError_t hmm_block_viterbi(const HmmInput<T>&, double*, int32_t*, int64_t*, T*,      \
                                         cudaStream_t);
ONESHOT_INSTANTIATE(float)
ONESHOT_INSTANTIATE(double)
#undef ONESHOT_INSTANTIATE

}  // namespace oneshot::cuda
