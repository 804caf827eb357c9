// Routed LoRA straight from the inventories, for decoding: no mixture in memory. Blocks cut the
// features, so that a handful of rows still reads the inventories with the whole device; each
// thread mixes the element it has just read for kRows rows. A row's sum over the blocks of the
// input side is formed by the blocks of the output side, in the order of the features. One launch
// for both sides would put each row on one multiprocessor, which alone reads too slowly.
#include "routing/cuda/routing.cuh"
#include "routing/cuda/vectors.cuh"

namespace oneshot::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kRows = 4;
constexpr int kSpan = 64;         // features of a block
constexpr int kSkills = 32;       // skills whose weights are in shared memory at a time
constexpr int64_t kFewRows = 64;  // up to here always

struct Sizes {
  RowMixtures rows;
  int64_t heads, skills, rank;
  int64_t of_head;  // features of a head on this side
  int64_t spans;    // of a head
};

Sizes sizes_of(const InventoryLora& args, const RowMixtures& rows, const Inventory& side) {
  const int64_t of_head = side.transposed ? side.p : side.q;
  const int64_t spans = (of_head + kSpan - 1) / kSpan;
  // One span at least: without a feature there is still `shrunk` to write.
  return {rows, side.heads, side.skills, args.shape.rank, of_head, spans > 0 ? spans : 1};
}

__host__ __device__ inline int64_t row_blocks(const RowMixtures& rows) {
  return (rows.groups * rows.repeat + kRows - 1) / kRows;
}

// The mixtures of a block's rows; -1 where there is none.
__device__ void mixtures_of(const RowMixtures& rows, int64_t first, int64_t* mixtures) {
  __syncthreads();  // whoever reads those before is done
  if (threadIdx.x < kRows) {
    const int64_t row = first + threadIdx.x;
    int64_t u = -1;
    if (row < rows.groups * rows.repeat) {
      u = rows.mixture_of[row / rows.repeat];
      require(u >= 0 && u < rows.mixtures);
    }
    mixtures[threadIdx.x] = u;
  }
  __syncthreads();
}

// shares[k, row]: the weights of the skills from `from` on.
template <typename R>
__device__ void load_shares(const Sizes& s, const R* weights, const int64_t* mixtures, int64_t head,
                            int64_t from, int count, R* shares) {
  __syncthreads();
  for (int e = int(threadIdx.x); e < count * kRows; e += kThreads) {
    const int64_t u = mixtures[e % kRows];
    shares[e] = u < 0 ? R(0) : weights[(u * s.heads + head) * s.skills + from + e / kRows];
  }
  __syncthreads();
}

__device__ __forceinline__ int skills_from(const Sizes& s, int64_t from) {
  return int(s.skills - from < kSkills ? s.skills - from : kSkills);
}

// partial [head and span, rows, rank]: x A over the features of one span.
template <typename T, typename I>
__global__ void __launch_bounds__(kThreads, 2)
    inventory_shrink_kernel(Sizes s, const T* x, const I* inventory, const Real<T>* weights,
                            Real<T>* partial) {
  using R = Real<T>;
  ONESHOT_SHARED(int64_t, mixtures, kRows);
  ONESHOT_SHARED(R, features, kSpan * kRows);
  ONESHOT_SHARED(R, shares, kSkills * kRows);
  ONESHOT_SHARED(R, sums_of, kThreads * kRows);
  const int64_t total = s.rows.groups * s.rows.repeat, spans = s.heads * s.spans;
  int width = 1;  // threads side by side along the rank
  while (width < s.rank && width < kThreads) width *= 2;
  const int lane = int(threadIdx.x) % width, line = int(threadIdx.x) / width;
  for (int64_t task = blockIdx.x; task < row_blocks(s.rows) * spans; task += gridDim.x) {
    const int64_t first_row = task / spans * kRows;
    const int64_t head = task % spans / s.spans, first = task % s.spans * kSpan;
    const int count = int(s.of_head - first < kSpan ? s.of_head - first : kSpan);
    mixtures_of(s.rows, first_row, mixtures);
    for (int e = int(threadIdx.x); e < count * kRows; e += kThreads) {
      const int64_t row = first_row + e / count;
      const int64_t f = head * s.of_head + first + e % count;
      features[e % count * kRows + e / count] =
          row < total ? to_real(x[row * s.heads * s.of_head + f]) : R(0);
    }
    for (int64_t first_rank = 0; first_rank < s.rank; first_rank += width) {
      const int64_t own = first_rank + lane;
      R sums[kRows] = {};
      for (int64_t from = 0; from < s.skills; from += kSkills) {
        const int skills = skills_from(s, from);
        load_shares(s, weights, mixtures, head, from, skills, shares);
        if (own >= s.rank) continue;
        for (int i = line; i < count; i += kThreads / width) {
          R mixed[kRows] = {};
#pragma unroll 8
          for (int k = 0; k < skills; ++k) {
            const int64_t skill = head * s.skills + from + k;
            const R a = to_real(inventory[(skill * s.of_head + first + i) * s.rank + own]);
#pragma unroll
            for (int n = 0; n < kRows; ++n) mixed[n] += shares[k * kRows + n] * a;
          }
#pragma unroll
          for (int n = 0; n < kRows; ++n) sums[n] += features[i * kRows + n] * mixed[n];
        }
      }
      __syncthreads();
#pragma unroll
      for (int n = 0; n < kRows; ++n) sums_of[n * kThreads + threadIdx.x] = sums[n];
      __syncthreads();
      for (int e = int(threadIdx.x); e < width * kRows; e += kThreads) {
        const int64_t row = first_row + e / width, rank = first_rank + e % width;
        if (row >= total || rank >= s.rank) continue;
        R sum = R(0);
        for (int l = 0; l < kThreads / width; ++l) {
          sum += sums_of[e / width * kThreads + l * width + e % width];
        }
        partial[(task % spans * total + row) * s.rank + rank] = sum;
      }
    }
  }
}

constexpr int kRankLines = kThreads / kSpan;
constexpr int kRankChunk = 64;

template <typename T, typename I>
__global__ void __launch_bounds__(kThreads, 2)
    inventory_expand_kernel(Sizes s, int64_t parts, const Real<T>* partial, const I* inventory,
                            const Real<T>* weights, const T* base, double scaling, Real<T>* shrunk,
                            T* y) {
  using R = Real<T>;
  ONESHOT_SHARED(int64_t, mixtures, kRows);
  ONESHOT_SHARED(R, factors, kRankChunk * kRows);
  ONESHOT_SHARED(R, shares, kSkills * kRows);
  ONESHOT_SHARED(R, sums_of, kThreads * kRows);
  const int64_t total = s.rows.groups * s.rows.repeat, spans = s.heads * s.spans;
  const int lane = int(threadIdx.x) % kSpan, line = int(threadIdx.x) / kSpan;
  for (int64_t task = blockIdx.x; task < row_blocks(s.rows) * spans; task += gridDim.x) {
    const int64_t first_row = task / spans * kRows;
    const int64_t head = task % spans / s.spans, f = task % s.spans * kSpan + lane;
    mixtures_of(s.rows, first_row, mixtures);
    R sums[kRows] = {};
    for (int64_t first = 0; first < s.rank; first += kRankChunk) {
      const int count = int(s.rank - first < kRankChunk ? s.rank - first : kRankChunk);
      __syncthreads();
      for (int e = int(threadIdx.x); e < count * kRows; e += kThreads) {
        const int64_t row = first_row + e / count, rank = first + e % count;
        R sum = R(0);
        if (row < total) {
#pragma unroll 8
          for (int64_t part = 0; part < parts; ++part) {
            sum += partial[(part * total + row) * s.rank + rank];
          }
          sum *= R(scaling);
          if (task % spans == 0) shrunk[row * s.rank + rank] = sum;
        }
        factors[e % count * kRows + e / count] = sum;
      }
      for (int64_t from = 0; from < s.skills; from += kSkills) {
        const int skills = skills_from(s, from);
        load_shares(s, weights, mixtures, head, from, skills, shares);
        if (f >= s.of_head) continue;
        for (int r = line; r < count; r += kRankLines) {
          R mixed[kRows] = {};
#pragma unroll 8
          for (int k = 0; k < skills; ++k) {
            const int64_t skill = head * s.skills + from + k;
            const R b = to_real(inventory[(skill * s.rank + first + r) * s.of_head + f]);
#pragma unroll
            for (int n = 0; n < kRows; ++n) mixed[n] += shares[k * kRows + n] * b;
          }
#pragma unroll
          for (int n = 0; n < kRows; ++n) sums[n] += factors[r * kRows + n] * mixed[n];
        }
      }
    }
    __syncthreads();
#pragma unroll
    for (int n = 0; n < kRows; ++n) sums_of[n * kThreads + threadIdx.x] = sums[n];
    __syncthreads();
    // One output a thread: the same feature, row number `line`.
    const int64_t row = first_row + line;
    if (f >= s.of_head || row >= total) continue;
    R sum = R(0);
#pragma unroll
    for (int l = 0; l < kRankLines; ++l) sum += sums_of[line * kThreads + l * kSpan + lane];
    const int64_t at = row * s.heads * s.of_head + head * s.of_head + f;
    if (base != nullptr) sum += to_real(base[at]);
    y[at] = from_real<T>(sum);
  }
}
static_assert(kRankLines == kRows);

template <typename T, typename I>
cudaError_t shrink(const InventoryLora& args, const RowMixtures& rows, void* partial,
                   cudaStream_t stream) {
  const Sizes s = sizes_of(args, rows, args.a);
  return launch(inventory_shrink_kernel<T, I>, blocks_for(row_blocks(rows) * s.heads * s.spans),
                kThreads, 0, stream, s, static_cast<const T*>(args.x),
                static_cast<const I*>(args.a.data), static_cast<const Real<T>*>(args.weights),
                static_cast<Real<T>*>(partial));
}

template <typename T, typename I>
cudaError_t expand(const InventoryLora& args, const RowMixtures& rows, const void* partial,
                   cudaStream_t stream) {
  const Sizes s = sizes_of(args, rows, args.b), in = sizes_of(args, rows, args.a);
  return launch(inventory_expand_kernel<T, I>, blocks_for(row_blocks(rows) * s.heads * s.spans),
                kThreads, 0, stream, s, in.heads * in.spans, static_cast<const Real<T>*>(partial),
                static_cast<const I*>(args.b.data), static_cast<const Real<T>*>(args.weights),
                static_cast<const T*>(args.base), args.scaling, static_cast<Real<T>*>(args.shrunk),
                static_cast<T*>(args.y));
}

}  // namespace

bool prefers_inventory(const RowMixtures& rows) {
  return rows.rows() <= kFewRows || rows.rows() <= 2 * rows.mixtures;
}

int64_t inventory_lora_workspace(const InventoryLora& args, const RowMixtures& rows) {
  const Sizes s = sizes_of(args, rows, args.a);
  return s.heads * s.spans * rows.rows() * s.rank *
         (args.shape.dtype == DType::kFloat64 ? int64_t(sizeof(double)) : int64_t(sizeof(float)));
}

cudaError_t inventory_lora(const InventoryLora& args, const RowMixtures& rows, void* workspace,
                           cudaStream_t stream) {
  return with_type(args.shape.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    // float64 goes with float64 alone.
    const auto with_adapter = [&](DType adapter, const auto& body) {
      return with_type(adapter, [&](auto other) {
        using I = typename decltype(other)::type;
        if constexpr (std::is_same_v<Real<T>, Real<I>>) {
          return body(TypeOf<I>());
        } else {
          return cudaErrorInvalidValue;
        }
      });
    };
    ONESHOT_RETURN_IF_FAILED(with_adapter(args.a.dtype, [&](auto adapter) {
      return shrink<T, typename decltype(adapter)::type>(args, rows, workspace, stream);
    }));
    return with_adapter(args.b.dtype, [&](auto adapter) {
      return expand<T, typename decltype(adapter)::type>(args, rows, workspace, stream);
    });
  });
}

}  // namespace oneshot::cuda
