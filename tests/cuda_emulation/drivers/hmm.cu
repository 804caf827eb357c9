// C entry points of the `hmm` launchers, for ctypes. inputs: init, trans, emit, lengths, final;
// numbers: batch, steps, states, the strides of HmmInput in its order, homogeneous.
#include "hmm/cuda/hmm.cuh"

#include "hmm/cuda/chain.cuh"
#include "hmm/cuda/messages_scan.cuh"

using namespace oneshot;

namespace {

template <typename T>
HmmInput<T> input(const void* const* inputs, const int64_t* numbers) {
  HmmInput<T> in;
  in.log_init = static_cast<const T*>(inputs[0]);
  in.log_trans = static_cast<const T*>(inputs[1]);
  in.log_emit = static_cast<const T*>(inputs[2]);
  in.lengths = static_cast<const int64_t*>(inputs[3]);
  in.log_final = static_cast<const T*>(inputs[4]);
  in.batch = numbers[0], in.steps = numbers[1], in.states = numbers[2];
  in.init_stride = numbers[3], in.final_stride = numbers[4];
  in.trans_batch_stride = numbers[5], in.trans_step_stride = numbers[6];
  in.emit_batch_stride = numbers[7], in.emit_step_stride = numbers[8];
  in.homogeneous = numbers[9] != 0;
  return in;
}

// outputs: log_likelihood, gamma, xi, xi_sum.
template <typename T>
HmmPosteriors<T> posteriors(void* const* outputs) {
  return {static_cast<T*>(outputs[0]), static_cast<T*>(outputs[1]), static_cast<T*>(outputs[2]),
          static_cast<T*>(outputs[3])};
}

// outputs: init, trans, emit, final; the shared ones are those whose input has one row.
template <typename T>
HmmGradients<T> gradients(const HmmInput<T>& in, void* const* outputs, const int64_t* rows) {
  HmmGradients<T> out;
  out.init = static_cast<T*>(outputs[0]);
  out.trans = static_cast<T*>(outputs[1]);
  out.emit = static_cast<T*>(outputs[2]);
  out.final = static_cast<T*>(outputs[3]);
  out.init_shared = rows[0] == 1;
  out.trans_shared = rows[1] == 1;
  out.final_shared = rows[2] == 1;
  out.trans_homogeneous = in.homogeneous;
  return out;
}

template <typename T>
int run_posteriors(const void* const* inputs, const int64_t* numbers, void* const* outputs,
                   void* workspace) {
  return int(
      cuda::hmm_posteriors(input<T>(inputs, numbers), posteriors<T>(outputs), workspace, nullptr));
}

template <typename T>
int run_backward(const void* const* inputs, const int64_t* numbers, const void* const* upstream,
                 void* const* outputs, const int64_t* rows, void* workspace) {
  const auto in = input<T>(inputs, numbers);
  const HmmUpstream<T> up{static_cast<const T*>(upstream[0]), static_cast<const T*>(upstream[1]),
                          static_cast<const T*>(upstream[2]), static_cast<const T*>(upstream[3])};
  return int(
      cuda::hmm_posteriors_backward(in, up, gradients(in, outputs, rows), workspace, nullptr));
}

template <typename T>
int run_viterbi(const void* const* inputs, const int64_t* numbers, int64_t* path, void* score,
                void* workspace) {
  return int(cuda::hmm_viterbi(input<T>(inputs, numbers), path, static_cast<T*>(score), workspace,
                               nullptr));
}

template <typename T>
int run_sample(const void* const* inputs, const int64_t* numbers, const HmmSampling& how,
               int64_t* paths, void* workspace) {
  return int(cuda::hmm_sample(input<T>(inputs, numbers), how, paths, workspace, nullptr));
}

// The linear sweeps alone; exact [2, batch] says for which of them they do not count.
template <typename T>
int run_linear(const void* const* inputs, const int64_t* numbers, double* const* messages,
               int* exact, void* log_likelihood) {
  const auto in = input<T>(inputs, numbers);
  cuda::HmmMessages m;
  m.alpha = messages[0], m.beta = messages[1], m.scale = messages[2], m.onward = messages[3];
  m.in_log = exact;
  m.stored = in.steps;
  auto* to = static_cast<T*>(log_likelihood);
  return int(in.states <= cuda::kWarpStates<T> ? cuda::hmm_warp_messages(in, m, to, nullptr)
                                               : cuda::hmm_block_messages(in, m, to, nullptr));
}

// The scan alone; whole [batch] says which sequences it leaves to other kernels.
template <typename T>
int run_scan(const void* const* inputs, const int64_t* numbers, void* const* memory, int* whole) {
  const auto in = input<T>(inputs, numbers);
  cuda::HmmMessages m;
  m.alpha = static_cast<double*>(memory[0]), m.beta = static_cast<double*>(memory[1]);
  m.scale = static_cast<double*>(memory[2]), m.in_log = static_cast<int*>(memory[3]);
  m.whole = whole, m.stored = in.steps;
  const int64_t count = (in.steps - 1 + cuda::kScanChunk - 1) / cuda::kScanChunk;
  const cuda::HmmChunks chunks{count,
                               static_cast<double*>(memory[4]),
                               static_cast<int64_t*>(memory[5]),
                               static_cast<double*>(memory[6]),
                               static_cast<double*>(memory[7]),
                               static_cast<int64_t*>(memory[8]),
                               static_cast<int*>(memory[9])};
  return int(cuda::hmm_scan_messages(in, m, chunks, static_cast<T*>(memory[10]), nullptr));
}

}  // namespace

// Bytes of workspace of each op: posteriors, their gradient, the best path, samples.
extern "C" void emu_hmm_workspace(int wide, const void* const* inputs, const int64_t* numbers,
                                  void* const* outputs, int64_t* bytes) {
  const auto count = [&](auto type) {
    using T = decltype(type);
    const auto in = input<T>(inputs, numbers);
    HmmGradients<T> out;
    out.trans_homogeneous = in.homogeneous;
    bytes[0] = cuda::hmm_posteriors_workspace(in, posteriors<T>(outputs));
    bytes[1] = cuda::hmm_posteriors_backward_workspace(in, out);
    bytes[2] = cuda::hmm_viterbi_workspace(in);
    bytes[3] = cuda::hmm_sample_workspace(in);
  };
  wide ? count(double()) : count(float());
}

extern "C" int emu_hmm_posteriors(int wide, const void* const* inputs, const int64_t* numbers,
                                  void* const* outputs, void* workspace) {
  return (wide ? run_posteriors<double> : run_posteriors<float>)(inputs, numbers, outputs,
                                                                 workspace);
}

extern "C" int emu_hmm_posteriors_backward(int wide, const void* const* inputs,
                                           const int64_t* numbers, const void* const* upstream,
                                           void* const* outputs, const int64_t* rows,
                                           void* workspace) {
  return (wide ? run_backward<double> : run_backward<float>)(inputs, numbers, upstream, outputs,
                                                             rows, workspace);
}

extern "C" int emu_hmm_viterbi(int wide, const void* const* inputs, const int64_t* numbers,
                               int64_t* path, void* score, void* workspace) {
  return (wide ? run_viterbi<double> : run_viterbi<float>)(inputs, numbers, path, score, workspace);
}

extern "C" int emu_hmm_sample(int wide, const void* const* inputs, const int64_t* numbers,
                              const int64_t* sequence_ids, int64_t samples, uint64_t seed,
                              int64_t* paths, void* workspace) {
  return (wide ? run_sample<double> : run_sample<float>)(inputs, numbers,
                                                         {sequence_ids, samples, seed}, paths,
                                                         workspace);
}

extern "C" int emu_hmm_linear(int wide, const void* const* inputs, const int64_t* numbers,
                              double* const* messages, int* exact, void* log_likelihood) {
  return (wide ? run_linear<double> : run_linear<float>)(inputs, numbers, messages, exact,
                                                         log_likelihood);
}

extern "C" int emu_hmm_scan(int wide, const void* const* inputs, const int64_t* numbers,
                            void* const* memory, int* whole) {
  return (wide ? run_scan<double> : run_scan<float>)(inputs, numbers, memory, whole);
}
