// Linear messages of up to 32 states: one warp for each sequence and direction, forward and
// backward at the same time.
#include "hmm/cuda/warp_sweep.cuh"

namespace oneshot::cuda {
namespace {

constexpr int kWarps = 4;

template <typename T, int kStates>
__device__ __forceinline__ void forward(const HmmInput<T>& in, const HmmMessages& m, int64_t b,
                                        int64_t length, SweepMemory& memory, T* log_likelihood) {
  Sweep<T, kStates> sweep(in, memory, b);
  const auto put = [&](int64_t t, const Message& message, int scale) {
    if (sweep.own()) m.alpha_of(b, t, in.states)[sweep.lane()] = message.value;
    if (sweep.lane() == 0) m.scale[b * in.steps + t] = scale;
  };
  Message message;
  double log_z = 0.0;
  if (length > 0) {
    message = sweep.first();
    put(0, message, 0);
    sweep.forward(1, length, message, put);
    log_z = log_total(in, b, message, sweep.own(), sweep.lane());
  }
  if (sweep.lane() != 0) return;
  log_likelihood[b] = T(log_z);
  m.in_log[b] = log_z != log_z;
  if (m.beta == nullptr) m.in_log[in.batch + b] = 0;
}

template <typename T, int kStates>
__device__ __forceinline__ void backward(const HmmInput<T>& in, const HmmMessages& m, int64_t b,
                                         int64_t length, SweepMemory& memory) {
  Sweep<T, kStates> sweep(in, memory, b);
  const auto put = [&](int64_t t, const Message& message) {
    if (sweep.own()) m.beta[(b * in.steps + t) * in.states + sweep.lane()] = message.value;
  };
  Message message;
  if (length > 0) {
    message = sweep.last();
    put(length - 1, message);
    sweep.backward(1, length, message, put);
  }
  const int lost = __any_sync(kAllLanes, message.value != message.value);
  if (sweep.lane() == 0) m.in_log[in.batch + b] = lost;
}

template <typename T, int kStates>
__global__ void __launch_bounds__(kWarps * 32, 4)
    warp_messages_kernel(HmmInput<T> in, HmmMessages m, T* log_likelihood) {
  ONESHOT_SHARED(SweepMemory, memories, kWarps);
  SweepMemory& memory = memories[threadIdx.x / 32];
  const int both = m.beta != nullptr;
  const int64_t stride = int64_t(gridDim.x) * kWarps;
  for (int64_t task = int64_t(blockIdx.x) * kWarps + threadIdx.x / 32; task < in.batch << both;
       task += stride) {
    const int64_t b = task >> both, length = length_of(in, b);
    if (m.whole != nullptr && m.whole[b] == 0) continue;
    if ((task & both) == 0) {
      forward<T, kStates>(in, m, b, length, memory, log_likelihood);
    } else {
      backward<T, kStates>(in, m, b, length, memory);
    }
  }
}

}  // namespace

template <typename T>
cudaError_t hmm_warp_messages(const HmmInput<T>& in, const HmmMessages& m, T* log_likelihood,
                              cudaStream_t stream) {
  const int64_t tasks = in.batch * (m.beta == nullptr ? 1 : 2);
  auto kernel = warp_messages_kernel<T, kFewStates>;
  if (in.states > kFewStates) kernel = warp_messages_kernel<T, kWarpStates<T>>;
  return launch(kernel, blocks_for((tasks + kWarps - 1) / kWarps), kWarps * 32, 0, stream, in, m,
                log_likelihood);
}

template cudaError_t hmm_warp_messages(const HmmInput<float>&, const HmmMessages&, float*,
                                       cudaStream_t);
template cudaError_t hmm_warp_messages(const HmmInput<double>&, const HmmMessages&, double*,
                                       cudaStream_t);

}  // namespace oneshot::cuda
