// Mixing an inventory head by head, and its gradients. A block takes 256 elements of one head,
// whatever the skill and the mixture: sixteen by sixteen where the mixture is the transpose (the
// input side), turned round through shared memory so that both sides are read and written along
// their own rows.
#include "routing/cuda/routing.cuh"
#include "routing/cuda/vectors.cuh"

namespace oneshot::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kSide = 16;
constexpr int kPitch = kSide + 1;  // columns of the tile meet different banks
constexpr int kAtOnce = 8;         // mixtures (or skills) a thread keeps sums for
constexpr int kTurned = 4;         // mixtures turned round between two barriers

struct Sizes {
  int64_t heads, skills, p, q, mixtures;
};

// Element (i, j) of mixture u, head h: [q, heads * p] if transposed, else [p, heads * q].
template <bool kTransposed>
__device__ __forceinline__ int64_t place(const Sizes& s, int64_t u, int64_t h, int64_t i,
                                         int64_t j) {
  return kTransposed ? (u * s.q + j) * (s.heads * s.p) + h * s.p + i
                     : (u * s.p + i) * (s.heads * s.q) + h * s.q + j;
}

// A block's tile of the [p, q] elements of a head. A thread has one element as the inventory lies
// (own), and one as the transposed mixture lies (turned).
template <bool kTransposed>
struct Tile {
  int64_t i, j, turned_i, turned_j;
  bool own, turned;

  __device__ Tile(const Sizes& s, int64_t tile) {
    const int x = int(threadIdx.x) % kSide, y = int(threadIdx.x) / kSide;
    if (kTransposed) {
      const int64_t wide = (s.q + kSide - 1) / kSide;
      const int64_t first_i = tile / wide * kSide, first_j = tile % wide * kSide;
      i = first_i + y, j = first_j + x;
      turned_i = first_i + x, turned_j = first_j + y;
    } else {
      const int64_t element = tile * kThreads + threadIdx.x;
      turned_i = i = element / s.q, turned_j = j = element % s.q;
    }
    own = i < s.p && j < s.q;
    turned = turned_i < s.p && turned_j < s.q;
  }
};

__host__ __device__ inline int64_t tiles_of(const Sizes& s, bool transposed) {
  return transposed ? (s.p + kSide - 1) / kSide * ((s.q + kSide - 1) / kSide)
                    : (s.p * s.q + kThreads - 1) / kThreads;
}

template <typename I, bool kTransposed>
__global__ void __launch_bounds__(kThreads, 2)
    mix_kernel(Sizes s, const I* inventory, const Real<I>* weights, Real<I>* mixture) {
  using R = Real<I>;
  ONESHOT_SHARED(R, turn, kTurned * kSide * kPitch);
  const int64_t tiles = tiles_of(s, kTransposed), passes = (s.mixtures + kAtOnce - 1) / kAtOnce;
  const int x = int(threadIdx.x) % kSide, y = int(threadIdx.x) / kSide;
  for (int64_t task = blockIdx.x; task < s.heads * tiles * passes; task += gridDim.x) {
    const int64_t first = task % passes * kAtOnce, h = task / passes / tiles;
    const Tile<kTransposed> tile(s, task / passes % tiles);
    R sums[kAtOnce] = {};
    for (int64_t k = 0; k < s.skills; ++k) {
      const R skill =
          tile.own ? to_real(inventory[((h * s.skills + k) * s.p + tile.i) * s.q + tile.j]) : R(0);
#pragma unroll
      for (int m = 0; m < kAtOnce; ++m) {
        const int64_t u = first + m < s.mixtures ? first + m : first;
        sums[m] += weights[(u * s.heads + h) * s.skills + k] * skill;
      }
    }
    if constexpr (!kTransposed) {
#pragma unroll
      for (int m = 0; m < kAtOnce; ++m) {
        if (tile.own && first + m < s.mixtures) {
          mixture[place<false>(s, first + m, h, tile.i, tile.j)] = sums[m];
        }
      }
    } else {
#pragma unroll
      for (int from = 0; from < kAtOnce; from += kTurned) {
        __syncthreads();
#pragma unroll
        for (int m = 0; m < kTurned; ++m) turn[(m * kSide + x) * kPitch + y] = sums[from + m];
        __syncthreads();
#pragma unroll
        for (int m = 0; m < kTurned; ++m) {
          const int64_t u = first + from + m;
          if (tile.turned && u < s.mixtures) {
            mixture[place<true>(s, u, h, tile.turned_i, tile.turned_j)] =
                turn[(m * kSide + y) * kPitch + x];
          }
        }
      }
    }
  }
}

// grad_inventory[h, k] = sum over mixtures of weights[u, h, k] * grad_mixture[u, head h].
template <typename I, bool kTransposed>
__global__ void __launch_bounds__(kThreads, 2)
    inventory_gradient_kernel(Sizes s, const Real<I>* grad, const Real<I>* weights, I* out) {
  using R = Real<I>;
  ONESHOT_SHARED(R, turn, kTurned * kSide * kPitch);
  const int64_t tiles = tiles_of(s, kTransposed), passes = (s.skills + kAtOnce - 1) / kAtOnce;
  const int x = int(threadIdx.x) % kSide, y = int(threadIdx.x) / kSide;
  for (int64_t task = blockIdx.x; task < s.heads * tiles * passes; task += gridDim.x) {
    const int64_t first = task % passes * kAtOnce, h = task / passes / tiles;
    const Tile<kTransposed> tile(s, task / passes % tiles);
    R sums[kAtOnce] = {};
    for (int64_t from = 0; from < s.mixtures; from += kTurned) {
      R upstream[kTurned];
#pragma unroll
      for (int m = 0; m < kTurned; ++m) {
        upstream[m] = tile.turned && from + m < s.mixtures
                          ? grad[place<kTransposed>(s, from + m, h, tile.turned_i, tile.turned_j)]
                          : R(0);
      }
      if (kTransposed) {
        __syncthreads();
#pragma unroll
        for (int m = 0; m < kTurned; ++m) turn[(m * kSide + x) * kPitch + y] = upstream[m];
        __syncthreads();
#pragma unroll
        for (int m = 0; m < kTurned; ++m) upstream[m] = turn[(m * kSide + y) * kPitch + x];
      }
#pragma unroll
      for (int m = 0; m < kTurned; ++m) {
        if (from + m >= s.mixtures) break;
        const R* shares = weights + ((from + m) * s.heads + h) * s.skills;
#pragma unroll
        for (int n = 0; n < kAtOnce; ++n) {
          sums[n] += shares[first + n < s.skills ? first + n : first] * upstream[m];
        }
      }
    }
#pragma unroll
    for (int n = 0; n < kAtOnce; ++n) {
      if (tile.own && first + n < s.skills) {
        out[((h * s.skills + first + n) * s.p + tile.i) * s.q + tile.j] = from_real<I>(sums[n]);
      }
    }
  }
}

// One block a weight: the product of a skill with the gradient of its mixture.
template <typename I, bool kTransposed>
__global__ void __launch_bounds__(kThreads, 2)
    weights_gradient_kernel(Sizes s, const Real<I>* grad, const I* inventory, bool add,
                            Real<I>* out) {
  using R = Real<I>;
  ONESHOT_SHARED(double, scratch, kThreads / 32);
  for (int64_t task = blockIdx.x; task < s.mixtures * s.heads * s.skills; task += gridDim.x) {
    const int64_t k = task % s.skills, h = task / s.skills % s.heads, u = task / s.skills / s.heads;
    const I* skill = inventory + (h * s.skills + k) * s.p * s.q;
    R sum = R(0);
    for (int64_t i = threadIdx.x / kSide; i < s.p; i += kThreads / kSide) {
      for (int64_t j = threadIdx.x % kSide; j < s.q; j += kSide) {
        sum += to_real(skill[i * s.q + j]) * grad[place<kTransposed>(s, u, h, i, j)];
      }
    }
    const double total = block_sum(double(sum), scratch);
    if (threadIdx.x == 0) out[task] = R(total) + (add ? out[task] : R(0));
  }
}

Sizes sizes_of(const Inventory& in, int64_t mixtures) {
  return {in.heads, in.skills, in.p, in.q, mixtures};
}

template <typename I, bool kTransposed>
cudaError_t mix_of(const MixForward& args, cudaStream_t stream) {
  const Sizes s = sizes_of(args.inventory, args.mixtures);
  const int64_t tasks = s.heads * tiles_of(s, kTransposed) * ((s.mixtures + kAtOnce - 1) / kAtOnce);
  return launch(mix_kernel<I, kTransposed>, blocks_for(tasks), kThreads, 0, stream, s,
                static_cast<const I*>(args.inventory.data),
                static_cast<const Real<I>*>(args.weights), static_cast<Real<I>*>(args.mixture));
}

template <typename I, bool kTransposed>
cudaError_t mix_backward_of(const MixBackward& args, cudaStream_t stream) {
  const Sizes s = sizes_of(args.inventory, args.mixtures);
  const auto* grad = static_cast<const Real<I>*>(args.grad_mixture);
  const auto* inventory = static_cast<const I*>(args.inventory.data);
  const auto* weights = static_cast<const Real<I>*>(args.weights);
  if (args.grad_inventory != nullptr) {
    const int64_t tasks = s.heads * tiles_of(s, kTransposed) * ((s.skills + kAtOnce - 1) / kAtOnce);
    ONESHOT_RETURN_IF_FAILED(launch(inventory_gradient_kernel<I, kTransposed>, blocks_for(tasks),
                                    kThreads, 0, stream, s, grad, weights,
                                    static_cast<I*>(args.grad_inventory)));
  }
  if (args.grad_weights == nullptr) return cudaSuccess;
  return launch(weights_gradient_kernel<I, kTransposed>,
                blocks_for(s.mixtures * s.heads * s.skills), kThreads, 0, stream, s, grad,
                inventory, args.add_weights, static_cast<Real<I>*>(args.grad_weights));
}

}  // namespace

cudaError_t mix(const MixForward& args, cudaStream_t stream) {
  return with_type(args.inventory.dtype, [&](auto type) {
    using I = typename decltype(type)::type;
    return args.inventory.transposed ? mix_of<I, true>(args, stream)
                                     : mix_of<I, false>(args, stream);
  });
}

cudaError_t mix_backward(const MixBackward& args, cudaStream_t stream) {
  return with_type(args.inventory.dtype, [&](auto type) {
    using I = typename decltype(type)::type;
    return args.inventory.transposed ? mix_backward_of<I, true>(args, stream)
                                     : mix_backward_of<I, false>(args, stream);
  });
}

}  // namespace oneshot::cuda
