// Few long sequences: a scan over time. A chunk of kChunk steps is a matrix, [K, K], whose row i is
// the sweep that starts in state i alone; all are made at once, one warp a row. One warp a
// direction then goes from chunk to chunk, and from the messages there every chunk is swept like a
// sequence of its own. Whether a sequence is scanned depends on its own length, so that neighbours
// and padding change no bit. Rows have exponents of their own; where they differ too much for a
// linear sum the result is NaN and the sequence is swept as a whole.
#include "hmm/cuda/messages_scan.cuh"

#include "hmm/cuda/warp_sweep.cuh"

namespace oneshot::cuda {
namespace {

constexpr int kWarps = 4;
constexpr int64_t kDead = INT64_MIN;

template <typename T>
struct Scan {
  HmmInput<T> in;
  HmmMessages m;
  HmmChunks to;
  T* log_likelihood;

  // Chunks of a sequence; 0: it is swept as a whole.
  __device__ int64_t chunks(int64_t b) const {
    const int64_t length = length_of(in, b);
    return length > kScanSteps ? (length - 1 + kScanChunk - 1) / kScanChunk : 0;
  }
  __device__ int64_t begin(int64_t chunk) const { return 1 + chunk * kScanChunk; }
  __device__ int64_t end(int64_t b, int64_t chunk) const {
    const int64_t length = length_of(in, b);
    return begin(chunk + 1) < length ? begin(chunk + 1) : length;
  }
  // Which sweeps do not count, forward and backward: over the chunks, then inside each.
  __device__ int* lost(int64_t b, int direction) const {
    return to.lost + (2 * b + direction) * (1 + to.count);
  }
  // Of a row of a chunk's matrix, and of the message before a chunk.
  __device__ int64_t row(int64_t b, int64_t chunk, int64_t i) const {
    return (b * to.count + chunk) * in.states + i;
  }
  __device__ int64_t start(int64_t b, int64_t chunk) const { return b * (to.count + 1) + chunk; }
};

// Calls body(task, memory of the warp), a warp each.
template <typename Body>
__device__ __forceinline__ void for_each_task(int64_t tasks, const Body& body) {
  ONESHOT_SHARED(SweepMemory, memories, kWarps);
  const int64_t stride = int64_t(gridDim.x) * kWarps;
  for (int64_t task = int64_t(blockIdx.x) * kWarps + threadIdx.x / 32; task < tasks;
       task += stride) {
    body(task, memories[threadIdx.x / 32]);
  }
}

template <typename T>
__global__ void __launch_bounds__(kWarps * 32, 4) chunk_matrices_kernel(Scan<T> scan) {
  const int64_t states = scan.in.states;
  for_each_task(scan.in.batch * scan.to.count * states, [&](int64_t task, SweepMemory& memory) {
    const int64_t chunk = task / states % scan.to.count, i = task % states;
    const int64_t b = task / states / scan.to.count;
    if (chunk >= scan.chunks(b)) return;
    Sweep<T, kScanStates> sweep(scan.in, memory, b);
    Message m;
    m.value = sweep.lane() == i ? 1.0 : 0.0;
    sweep.forward(scan.begin(chunk), scan.end(b, chunk), m, [](int64_t, const Message&, int) {});
    const int64_t row = scan.row(b, chunk, i);
    if (sweep.own()) scan.to.matrices[row * states + sweep.lane()] = m.value;
    // A state from which no path crosses the chunk must not set the scale of the others.
    const int alive = __any_sync(kAllLanes, m.value != 0.0);
    if (sweep.lane() == 0) scan.to.exponents[row] = alive ? m.exponent : kDead;
  });
}

// value * 2^exponent of each lane (0 for a dead one), over the largest power of two among them,
// which is returned.
__device__ __forceinline__ int64_t align(double& value, int64_t exponent) {
  // A chunk adds less than 2^26 to an exponent: a step less than 2^18.
  if (exponent == kDead) value = 0.0;
  const int own =
      value == 0.0 ? INT_MIN / 2 : int(exponent) + exponent_of_high_word(high_word(value));
  const int largest = warp_largest(own);
  if (value != 0.0) {
    const int64_t drop = exponent - largest;
    value = drop < -1000 ? double(NAN) : fitting(value * two_to(int(drop < 1000 ? drop : 1000)));
  }
  return largest == INT_MIN / 2 ? 0 : largest;
}

// Forward (task even) and backward over the chunks of one sequence.
template <typename T>
__global__ void __launch_bounds__(kWarps * 32, 4) chunk_messages_kernel(Scan<T> scan) {
  const int64_t states = scan.in.states;
  const int both = scan.m.beta != nullptr;
  for_each_task(scan.in.batch << both, [&](int64_t task, SweepMemory& memory) {
    const int64_t b = task >> both, chunks = scan.chunks(b);
    if (chunks == 0) return;
    const int lane = int(threadIdx.x) % 32;
    const bool own = lane < states, forward = (task & both) == 0;
    const Sweep<T, kScanStates> sweep(scan.in, memory, b);
    Message m = forward ? sweep.first() : sweep.last();
    double* starts = forward ? scan.to.before : scan.to.behind;
    for (int64_t n = 0; n <= chunks; ++n) {
      const int64_t at = scan.start(b, forward ? n : chunks - n);
      if (own) starts[at * states + lane] = m.value;
      if (forward && lane == 0) scan.to.start_exponents[at] = m.exponent;
      if (n == chunks) break;
      const int64_t first = scan.row(b, forward ? n : chunks - 1 - n, 0);
      const double* matrix = scan.to.matrices + first * states;
      const int64_t exponent = own ? scan.to.exponents[first + lane] : 0;
      double sum = 0.0;
      if (forward) {
        m.exponent += align(m.value, exponent);
        for (int i = 0; i < states; ++i) {
          const double from = __shfl_sync(kAllLanes, m.value, i);
          if (own) sum = fma(from, matrix[i * states + lane], sum);
        }
        m.value = fitting(sum);
      } else {
        for (int j = 0; j < states; ++j) {
          const double from = __shfl_sync(kAllLanes, m.value, j);
          if (own) sum = fma(from, matrix[lane * states + j], sum);
        }
        m.value = fitting(sum);
        align(m.value, exponent);
      }
    }
    if (forward) {
      const double log_z = log_total(scan.in, b, m, own, lane);
      if (lane == 0) scan.log_likelihood[b] = T(log_z), scan.lost(b, 0)[0] = log_z != log_z;
    } else {
      const int lost = __any_sync(kAllLanes, m.value != m.value);
      if (lane == 0) scan.lost(b, 1)[0] = lost;
    }
  });
}

// Inside the chunks. The row between two chunks belongs, going forward, to the one behind it: the
// exponents of the two messages there differ by a whole number, which becomes part of its scale.
template <typename T>
__global__ void __launch_bounds__(kWarps * 32, 4) chunk_sweeps_kernel(Scan<T> scan) {
  const int64_t states = scan.in.states, steps = scan.in.steps;
  const int both = scan.m.beta != nullptr;
  for_each_task(scan.in.batch * scan.to.count << both, [&](int64_t task, SweepMemory& memory) {
    const int64_t chunk = (task >> both) % scan.to.count, b = (task >> both) / scan.to.count;
    const int64_t chunks = scan.chunks(b);
    int lost = 0;
    if (chunk < chunks) {
      Sweep<T, kScanStates> sweep(scan.in, memory, b);
      const int64_t begin = scan.begin(chunk), end = scan.end(b, chunk);
      const bool forward = (task & both) == 0;
      const int64_t at = scan.start(b, forward ? chunk : chunk + 1);
      Message m;
      if (sweep.own())
        m.value = (forward ? scan.to.before : scan.to.behind)[at * states + sweep.lane()];
      if (forward) {
        m.exponent = scan.to.start_exponents[at];
        const auto put = [&](int64_t t, const Message& message, int64_t scale) {
          const bool shared = t == end - 1 && chunk + 1 < chunks;
          if (sweep.own() && !shared) scan.m.alpha_of(b, t, states)[sweep.lane()] = message.value;
          if (shared) scale += scan.to.start_exponents[at + 1] - message.exponent;
          if (sweep.lane() == 0 && t >= begin) scan.m.scale[b * steps + t] = double(scale);
        };
        put(begin - 1, m, 0);
        sweep.forward(begin, end, m, put);
      } else {
        const auto put = [&](int64_t t, const Message& message) {
          const bool shared = t == begin - 1 && chunk > 0;
          if (sweep.own() && !shared) {
            scan.m.beta[(b * steps + t) * states + sweep.lane()] = message.value;
          }
        };
        put(end - 1, m);
        sweep.backward(begin, end, m, put);
      }
      lost = __any_sync(kAllLanes, m.value != m.value);
    }
    if (threadIdx.x % 32 == 0) scan.lost(b, int(task & both))[1 + chunk] = lost;
  });
}

// Which sequences are swept as a whole after all.
template <typename T>
__global__ void __launch_bounds__(kWarps * 32) chunk_flags_kernel(Scan<T> scan) {
  const int64_t flags = scan.m.stored == scan.in.steps ? 1 + scan.to.count : 1;
  const int64_t stride = int64_t(gridDim.x) * kWarps;
  for (int64_t b = int64_t(blockIdx.x) * kWarps + threadIdx.x / 32; b < scan.in.batch;
       b += stride) {
    int lost = scan.chunks(b) == 0;
    for (int direction = 0; direction < (scan.m.beta == nullptr ? 1 : 2); ++direction) {
      for (int64_t n = threadIdx.x % 32; n < flags && !lost; n += 32) {
        lost = scan.lost(b, direction)[n];
      }
    }
    lost = __any_sync(kAllLanes, lost);
    if (threadIdx.x % 32 != 0) continue;
    scan.m.whole[b] = lost;
    if (!lost) scan.m.in_log[b] = 0, scan.m.in_log[scan.in.batch + b] = 0;
  }
}

unsigned blocks_of(int64_t tasks) { return blocks_for((tasks + kWarps - 1) / kWarps); }

}  // namespace

template <typename T>
cudaError_t hmm_scan_messages(const HmmInput<T>& in, const HmmMessages& m, const HmmChunks& chunks,
                              T* log_likelihood, cudaStream_t stream) {
  const Scan<T> scan{in, m, chunks, log_likelihood};
  const int64_t parts = in.batch * chunks.count, both = m.beta != nullptr ? 1 : 0;
  ONESHOT_RETURN_IF_FAILED(
      launch(chunk_matrices_kernel<T>, blocks_of(parts * in.states), kWarps * 32, 0, stream, scan));
  ONESHOT_RETURN_IF_FAILED(
      launch(chunk_messages_kernel<T>, blocks_of(in.batch << both), kWarps * 32, 0, stream, scan));
  if (m.stored == in.steps) {  // otherwise no messages are needed
    ONESHOT_RETURN_IF_FAILED(
        launch(chunk_sweeps_kernel<T>, blocks_of(parts << both), kWarps * 32, 0, stream, scan));
  }
  return launch(chunk_flags_kernel<T>, blocks_of(in.batch), kWarps * 32, 0, stream, scan);
}

template cudaError_t hmm_scan_messages(const HmmInput<float>&, const HmmMessages&, const HmmChunks&,
                                       float*, cudaStream_t);
template cudaError_t hmm_scan_messages(const HmmInput<double>&, const HmmMessages&,
                                       const HmmChunks&, double*, cudaStream_t);

}  // namespace oneshot::cuda
