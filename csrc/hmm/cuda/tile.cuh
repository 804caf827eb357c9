// Tiles of steps that one warp reads ahead, up to 32 states: all lanes load matrices and emissions
// with adjacent addresses into registers while the tile before is worked on, and turn them round
// through shared memory.
#pragma once

#include "hmm/cuda/chain.cuh"

namespace oneshot::cuda {

// Kernels are made for up to kStates states: a tile holds one matrix of them at least, or several
// smaller ones.
inline constexpr int kFewStates = 22;
template <int kStates>
inline constexpr int kTileLoads = (kStates * kStates + 31) / 32;  // of matrices, for each lane
template <int kStates>
inline constexpr int kTileSteps = kStates <= kFewStates ? 6 : 4;
// Rows of a matrix have an odd pitch in shared memory, so that lanes that walk rows meet different
// banks; no number of states up to 32 needs more.
inline constexpr int kTileRoom = 1104;

// Steps of a tile: as many matrices as fit.
template <int kStates>
__device__ __forceinline__ int tile_steps(int states, bool constant) {
  const int fit = kStates * kStates / (states * states);
  return constant || fit > kTileSteps<kStates> ? kTileSteps<kStates> : fit;
}

// Lane k takes elements k, k + 32, ...; calls body(element, place in shared memory).
template <int kStates, typename Body>
__device__ __forceinline__ void for_tile_elements(int count, int states, const Body& body) {
  const int lane = int(threadIdx.x) % 32, pitch = states | 1;
  const int down = 32 / states, right = 32 % states;
  int row = lane / states, column = lane % states;
#pragma unroll
  for (int i = 0; i < kTileLoads<kStates>; ++i) {
    if (i * 32 >= count) break;
    if (i * 32 + lane < count) body(i, row * pitch + column);
    row += down, column += right;
    if (column >= states) column -= states, ++row;
  }
}

template <typename T, int kStates>
struct Tile {
  T matrices[kTileLoads<kStates>];
  T emissions[kTileSteps<kStates>];

  // Of the steps [first, first + count) and the matrices into them; a lane past the states gets
  // -inf for emissions.
  __device__ __forceinline__ void load(const HmmInput<T>& in, int64_t b, int64_t first, int count,
                                       bool with_matrices) {
    const int lane = int(threadIdx.x) % 32, states = int(in.states);
    const int elements = with_matrices ? count * states * states : 0;
    const T* matrix = matrix_into(in, b, first);
#pragma unroll
    for (int i = 0; i < kTileLoads<kStates>; ++i) {
      matrices[i] = i * 32 + lane < elements ? matrix[i * 32 + lane] : T(0);
    }
    const T* emission = emissions_of(in, b, first);
#pragma unroll
    for (int c = 0; c < kTileSteps<kStates>; ++c) {
      emissions[c] = c < count && lane < states ? emission[c * states + lane] : minus_infinity<T>();
    }
  }

  // Into shared memory, as `convert` makes them.
  template <typename Shared, typename Convert>
  __device__ __forceinline__ void put_matrices(Shared* shared, int count, int states,
                                               const Convert& convert) const {
    for_tile_elements<kStates>(count * states * states, states,
                               [&](int i, int place) { shared[place] = convert(matrices[i]); });
  }
};

}  // namespace oneshot::cuda
