// Linear messages of up to 32 states: one warp for each sequence and direction, a state in each
// lane, forward and backward at the same time. A step is a chain of dependent operations, so all
// exponentials are made ahead of it, a tile at a time.
#include "cuda/hmm_tile.cuh"

namespace oneshot::cuda {
namespace {

constexpr int kWarps = 4;

// Shared memory of one warp.
struct Memory {
  double matrices[kTileRoom];
  double emissions[kTileSteps * 32];
  double message[2 * 32];  // the two are written in turn
};

// The row in the lanes of a warp as weights over 2^shift, which `exponent` collects.
template <typename T>
__device__ __forceinline__ double row_weight(T potential, int64_t& exponent) {
  const int shift = shift_from(warp_largest(shift_candidate(potential)));
  exponent += shift;
  return weight(potential, shift);
}

__device__ __forceinline__ int message_exponent(double message) {
  return exponent_of_high_word(warp_largest(high_word(message)));
}

// Sum over i of vector[i] * matrix[i * stride].
__device__ __forceinline__ double product(const double* vector, const double* matrix, int stride,
                                          int states) {
  double even = 0.0, odd = 0.0;
  int i = 0;
#pragma unroll 2
  for (; i + 1 < states; i += 2) {
    even = fma(vector[i], matrix[i * stride], even);
    odd = fma(vector[i + 1], matrix[(i + 1) * stride], odd);
  }
  if (i < states) even = fma(vector[i], matrix[i * stride], even);
  return even + odd;
}

template <typename T>
class Sweep {
 public:
  __device__ Sweep(const HmmInput<T>& in, const HmmMessages& m, Memory& memory, int64_t b)
      : in_(in),
        m_(m),
        memory_(memory),
        b_(b),
        length_(length_of(in, b)),
        states_(int(in.states)),
        pitch_(states_ | 1),
        steps_(tile_steps<T>(states_, in.constant_trans)),
        lane_(int(threadIdx.x) % 32),
        column_(lane_ < states_ ? lane_
                                : states_ - 1),  // a lane past the states gets 0 all the same
        own_(lane_ < states_) {
    __syncwarp();  // the sequence before has been read
    if (in.constant_trans && length_ > 1) {
      // From float, too, in double: its rounding would be the same at every step.
      const T* matrix = matrix_into(in, b, 1);
      for (int i = lane_; i < states_ * states_; i += 32) {
        memory.matrices[i / states_ * pitch_ + i % states_] = weight(double(matrix[i]));
      }
    }
  }

  __device__ void forward(T* log_likelihood) {
    int64_t exponent = 0;
    double message = 0.0;
    if (length_ > 0) {
      const T* init = in_.log_init + b_ * in_.init_stride;
      message = row_weight(own_ ? init[lane_] : minus_infinity<T>(), exponent);
      const T* emissions = emissions_of(in_, b_, 0);
      message *= row_weight(own_ ? emissions[lane_] : minus_infinity<T>(), exponent);
      message = fitting(message);
      put(m_.alpha_of(b_, 0, states_), message);
    }
    int64_t first = 1;
    for (load(first, counted(first)); first < length_;) {
      const int count = counted(first);
      exponent += take(count);
      load(first + count, counted(first + count));
      for (int c = 0; c < count; ++c, ++first) {
        const int stale = message_exponent(message);
        const double sum = product(shared(message), matrix(c) + column_, pitch_, states_);
        message = fitting(sum * memory_.emissions[c * 32 + lane_] * two_to(-stale));
        exponent += stale;
        put(m_.alpha_of(b_, first, states_), message);
        if (lane_ == 0) m_.scale[b_ * in_.steps + first] = stale;
      }
    }
    message *= row_weight(last_potential(), exponent);
    const double total = warp_reduce(message, Sum());
    if (lane_ != 0) return;
    // 2^exponent would not fit. The logarithm of 0 is -inf.
    log_likelihood[b_] = T(length_ == 0 ? 0.0 : log(total) + kLn2 * double(exponent));
    m_.exact[b_] = total != total;
    if (m_.beta == nullptr) m_.exact[in_.batch + b_] = 0;
  }

  __device__ void backward() {
    int64_t unused = 0;
    double message = fitting(row_weight(last_potential(), unused));
    double* rows = m_.beta + b_ * in_.steps * states_;
    if (length_ > 0) put(rows + (length_ - 1) * states_, message);
    int64_t end = length_;
    for (load(first_of(end), int(end - first_of(end))); end > 1;) {
      const int64_t first = first_of(end), before = first_of(first);
      take(int(end - first));
      load(before, int(first - before));
      for (; end > first; --end) {
        const int c = int(end - 1 - first), stale = message_exponent(message);
        const double* onward = shared(message * memory_.emissions[c * 32 + lane_]);
        const double sum = product(onward, matrix(c) + column_ * pitch_, 1, states_);
        message = own_ ? fitting(sum * two_to(-stale)) : 0.0;
        put(rows + (end - 2) * states_, message);
      }
    }
    const int lost = __any_sync(kAllLanes, message != message);
    if (lane_ == 0) m_.exact[in_.batch + b_] = lost;
  }

 private:
  // Tiles forward are the steps [first, first + counted(first)), backward [first_of(end), end).
  __device__ int counted(int64_t first) const {
    return first >= length_ ? 0 : int(length_ - first < steps_ ? length_ - first : steps_);
  }
  __device__ int64_t first_of(int64_t end) const {
    return end <= 1 ? end : end - steps_ > 1 ? end - steps_ : 1;
  }

  __device__ __forceinline__ void load(int64_t first, int count) {
    tile_.load(in_, b_, first, count, !in_.constant_trans);
  }

  // Makes weights of the tile that was loaded; returns the shifts of its emissions.
  __device__ __forceinline__ int64_t take(int count) {
    int64_t exponent = 0;
    __syncwarp();  // the tile before has been read
    if (!in_.constant_trans) {
      tile_.put_matrices(memory_.matrices, count, states_, [](T x) { return weight(x); });
    }
#pragma unroll
    for (int c = 0; c < kTileSteps; ++c) {
      memory_.emissions[c * 32 + lane_] = row_weight(tile_.emissions[c], exponent);
    }
    return exponent;
  }

  // What each lane brings, for all lanes to read.
  __device__ __forceinline__ const double* shared(double value) {
    double* values = memory_.message + buffer_;
    values[lane_] = value;
    buffer_ ^= 32;
    __syncwarp();
    return values;
  }

  __device__ const double* matrix(int c) const {
    return memory_.matrices + (in_.constant_trans ? 0 : c * states_ * pitch_);
  }
  __device__ T last_potential() const {
    return own_ && length_ > 0 ? final_of(in_, b_, lane_) : minus_infinity<T>();
  }
  __device__ void put(double* row, double message) const {
    if (own_) row[lane_] = message;
  }

  const HmmInput<T>& in_;
  const HmmMessages& m_;
  Memory& memory_;
  int64_t b_, length_;
  int states_, pitch_, steps_, lane_, column_;
  bool own_;
  int buffer_ = 0;
  Tile<T> tile_;
};

template <typename T>
__global__ void __launch_bounds__(kWarps * 32, 4)
    warp_messages_kernel(HmmInput<T> in, HmmMessages m, T* log_likelihood) {
  ONESHOT_SHARED(Memory, memories, kWarps);
  Memory& memory = memories[threadIdx.x / 32];
  const int both = m.beta != nullptr;
  const int64_t tasks = in.batch << both;
  const int64_t stride = int64_t(gridDim.x) * kWarps;
  for (int64_t task = int64_t(blockIdx.x) * kWarps + threadIdx.x / 32; task < tasks;
       task += stride) {
    Sweep<T> sweep(in, m, memory, task >> both);
    if ((task & both) == 0) {
      sweep.forward(log_likelihood);
    } else {
      sweep.backward();
    }
  }
}

}  // namespace

template <typename T>
cudaError_t hmm_warp_messages(const HmmInput<T>& in, const HmmMessages& m, T* log_likelihood,
                              cudaStream_t stream) {
  const int64_t tasks = in.batch * (m.beta == nullptr ? 1 : 2);
  return launch(warp_messages_kernel<T>, blocks_for((tasks + kWarps - 1) / kWarps), kWarps * 32, 0,
                stream, in, m, log_likelihood);
}

template cudaError_t hmm_warp_messages(const HmmInput<float>&, const HmmMessages&, float*,
                                       cudaStream_t);
template cudaError_t hmm_warp_messages(const HmmInput<double>&, const HmmMessages&, double*,
                                       cudaStream_t);

}  // namespace oneshot::cuda
