// Linear messages of up to 32 states, a sweep by one warp: a state in each lane. A step is a chain
// of dependent operations, so all exponentials are made ahead of it, a tile at a time.
#pragma once

#include "hmm/cuda/tile.cuh"

namespace oneshot::cuda {

// Shared memory of one warp.
struct SweepMemory {
  double matrices[kTileRoom];
  double emissions[kTileSteps<1> * 32];
  double message[2 * 32];  // the two are written in turn
};

// A number of each lane as weights over 2^shift, which `exponent` collects.
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
#pragma unroll 1  // more would not fit into registers beside the tile ahead
  for (; i + 1 < states; i += 2) {
    even = fma(vector[i], matrix[i * stride], even);
    odd = fma(vector[i + 1], matrix[(i + 1) * stride], odd);
  }
  if (i < states) even = fma(vector[i], matrix[i * stride], even);
  return even + odd;
}

// The message of a lane past the states is 0. The weights it stands for are message * 2^exponent.
struct Message {
  double value = 0.0;
  int64_t exponent = 0;
};

template <typename T, int kStates>
class Sweep {
 public:
  __device__ Sweep(const HmmInput<T>& in, SweepMemory& memory, int64_t b)
      : in_(in),
        memory_(memory),
        b_(b),
        states_(int(in.states)),
        pitch_(states_ | 1),
        steps_(tile_steps<kStates>(states_, in.homogeneous)),
        lane_(int(threadIdx.x) % 32),
        column_(lane_ < states_ ? lane_ : states_ - 1),  // a lane past the states is not read
        own_(lane_ < states_) {
    __syncwarp();  // the sequence before has been read
    if (in.homogeneous && in.steps > 1) {
      // From float, too, in double: its rounding would be the same at every step.
      const T* matrix = matrix_into(in, b, 1);
      for (int i = lane_; i < states_ * states_; i += 32) {
        memory.matrices[i / states_ * pitch_ + i % states_] = weight(double(matrix[i]));
      }
    }
  }

  __device__ bool own() const { return own_; }
  __device__ int lane() const { return lane_; }

  // Forward at step 0.
  __device__ Message first() const {
    Message m;
    const T* init = in_.log_init + b_ * in_.init_stride;
    m.value = row_weight(own_ ? init[lane_] : minus_infinity<T>(), m.exponent);
    const T* emissions = emissions_of(in_, b_, 0);
    m.value *= row_weight(own_ ? emissions[lane_] : minus_infinity<T>(), m.exponent);
    m.value = fitting(m.value);
    return m;
  }

  // Backward at the last step.
  __device__ Message last() const {
    Message m;
    m.value = row_weight(own_ ? final_of(in_, b_, lane_) : minus_infinity<T>(), m.exponent);
    m.value = fitting(m.value);
    return m;
  }

  // From step t - 1 to t for all t in [begin, end); put(t, message, scale) for each, scale being
  // the power of two that this step was divided by.
  template <typename Put>
  __device__ __forceinline__ void forward(int64_t begin, int64_t end, Message& m, const Put& put) {
    for (load(begin, counted(begin, end)); begin < end;) {
      const int count = counted(begin, end);
      m.exponent += take(count);
      load(begin + count, counted(begin + count, end));
      for (int c = 0; c < count; ++c, ++begin) {
        const int stale = message_exponent(m.value);
        const double sum = product(shared(m.value), matrix(c) + column_, pitch_, states_);
        m.value = fitting(sum * memory_.emissions[c * 32 + lane_] * two_to(-stale));
        m.exponent += stale;
        put(begin, m, stale);
      }
    }
  }

  // From step t to t - 1 for all t in [begin, end), the last first; put(t - 1, message). The
  // exponent is not kept: no posterior needs it.
  template <typename Put>
  __device__ __forceinline__ void backward(int64_t begin, int64_t end, Message& m, const Put& put) {
    for (load(first_of(begin, end), int(end - first_of(begin, end))); end > begin;) {
      const int64_t first = first_of(begin, end), before = first_of(begin, first);
      take(int(end - first));
      load(before, int(first - before));
      for (; end > first; --end) {
        const int c = int(end - 1 - first), stale = message_exponent(m.value);
        const double* onward = shared(m.value * memory_.emissions[c * 32 + lane_]);
        const double sum = product(onward, matrix(c) + column_ * pitch_, 1, states_);
        m.value = own_ ? fitting(sum * two_to(-stale)) : 0.0;
        put(end - 2, m);
      }
    }
  }

 private:
  // Tiles forward are the steps [begin, begin + counted), backward [first_of, end).
  __device__ int counted(int64_t begin, int64_t end) const {
    return begin >= end ? 0 : int(end - begin < steps_ ? end - begin : steps_);
  }
  __device__ int64_t first_of(int64_t begin, int64_t end) const {
    return end <= begin ? end : end - steps_ > begin ? end - steps_ : begin;
  }

  __device__ __forceinline__ void load(int64_t first, int count) {
    tile_.load(in_, b_, first, count, !in_.homogeneous);
  }

  // Makes weights of the tile that was loaded; returns the shifts of its emissions.
  __device__ __forceinline__ int64_t take(int count) {
    int64_t exponent = 0;
    __syncwarp();  // the tile before has been read
    if (!in_.homogeneous) {
      tile_.put_matrices(memory_.matrices, count, states_, [](T x) { return weight(x); });
    }
#pragma unroll
    for (int c = 0; c < kTileSteps<kStates>; ++c) {
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
    return memory_.matrices + (in_.homogeneous ? 0 : c * states_ * pitch_);
  }

  const HmmInput<T>& in_;
  SweepMemory& memory_;
  int64_t b_;
  int states_, pitch_, steps_, lane_, column_;
  bool own_;
  int buffer_ = 0;
  Tile<T, kStates> tile_;
};

// log Z, from the last forward message; -inf for 0.
template <typename T>
__device__ __forceinline__ double log_total(const HmmInput<T>& in, int64_t b, const Message& m,
                                            bool own, int lane) {
  int64_t exponent = m.exponent;
  const T last = own ? final_of(in, b, lane) : minus_infinity<T>();
  const double total = warp_reduce(m.value * row_weight(last, exponent), Sum());
  return log(total) + kLn2 * double(exponent);  // 2^exponent would not fit
}

}  // namespace oneshot::cuda
