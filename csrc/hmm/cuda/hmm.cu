// Launchers of the `hmm` family: which kernels an op takes, and where its workspace lies.
#include "hmm/cuda/hmm.cuh"

#include "hmm/cuda/messages_scan.cuh"
#include "hmm/cuda/paths.cuh"
#include "hmm/cuda/posteriors.cuh"

namespace oneshot::cuda {
namespace {

// Cuts one workspace into arrays; made from nullptr it only counts the bytes.
class Workspace {
 public:
  explicit Workspace(void* base) : base_(static_cast<char*>(base)) {}

  template <typename Element>
  Element* take(int64_t count) {
    const int64_t at = bytes_;
    bytes_ += (count * int64_t(sizeof(Element)) + 255) / 256 * 256;
    return base_ == nullptr ? nullptr : reinterpret_cast<Element*>(base_ + at);
  }
  int64_t bytes() const { return bytes_; }

 private:
  char* base_;
  int64_t bytes_ = 0;
};

// Messages for the linear sweeps and, where those do not count, for logarithms.
struct Messages : HmmMessages {
  HmmChunks chunks;  // of the sequences that are scanned, if there may be any
};

template <typename T>
Messages take_messages(const HmmInput<T>& in, bool both, bool store, Workspace& workspace) {
  Messages m;
  m.stored = store ? in.steps : 2;
  m.alpha = workspace.take<double>(in.batch * m.stored * in.states);
  if (both) m.beta = workspace.take<double>(in.batch * in.steps * in.states);
  m.scale = workspace.take<double>(in.batch * in.steps);
  m.in_log = workspace.take<int>(2 * in.batch);
  if (in.states > kWarpStates<T>) {
    m.onward = workspace.take<double>(in.batch * in.states);
    if (in.homogeneous) {
      const int64_t matrices = in.trans_batch_stride == 0 ? 1 : in.batch;
      m.ready = workspace.take<double>(matrices * in.states * in.states);
    }
  }
  if (in.steps > kScanSteps && in.states <= kScanStates) {
    HmmChunks& to = m.chunks;
    to.count = (in.steps - 1 + kScanChunk - 1) / kScanChunk;
    const int64_t rows = in.batch * to.count * in.states, starts = in.batch * (to.count + 1);
    to.matrices = workspace.take<double>(rows * in.states);
    to.exponents = workspace.take<int64_t>(rows);
    to.before = workspace.take<double>(starts * in.states);
    to.behind = workspace.take<double>(starts * in.states);
    to.start_exponents = workspace.take<int64_t>(starts);
    to.lost = workspace.take<int>(in.batch * 2 * (1 + to.count));
    m.whole = workspace.take<int>(in.batch);
  }
  return m;
}

template <typename T>
cudaError_t run_messages(const HmmInput<T>& in, const Messages& m, T* log_likelihood,
                         cudaStream_t stream) {
  if (m.chunks.count > 0) {
    ONESHOT_RETURN_IF_FAILED(hmm_scan_messages(in, m, m.chunks, log_likelihood, stream));
  }
  ONESHOT_RETURN_IF_FAILED(in.states <= kWarpStates<T>
                               ? hmm_warp_messages(in, m, log_likelihood, stream)
                               : hmm_block_messages(in, m, log_likelihood, stream));
  return hmm_log_messages(in, HmmUpstream<T>(), m, log_likelihood, stream);
}

template <typename T>
struct PosteriorParts {
  Messages messages;
  double* pairs = nullptr;

  PosteriorParts(const HmmInput<T>& in, const HmmPosteriors<T>& out, Workspace& workspace) {
    const bool both = out.gamma != nullptr || out.xi != nullptr || out.xi_sum != nullptr;
    messages = take_messages(in, both, both, workspace);
    if (out.xi_sum != nullptr) pairs = workspace.take<double>(hmm_pair_parts(in));
  }
};

template <typename T>
struct BackwardParts {
  HmmMessages messages;
  double *mean, *pairs = nullptr;
  T* log_likelihood;

  BackwardParts(const HmmInput<T>& in, const HmmGradients<T>& out, Workspace& workspace) {
    const int64_t count = in.batch * in.steps * in.states;
    for (double** part : {&messages.alpha, &messages.beta, &messages.before, &messages.after}) {
      *part = workspace.take<double>(count);
    }
    messages.scale = workspace.take<double>(in.batch * in.steps);
    messages.stored = in.steps;
    mean = workspace.take<double>(in.batch * in.steps);
    if (out.trans_homogeneous) pairs = workspace.take<double>(hmm_pair_parts(in));
    log_likelihood = workspace.take<T>(in.batch);
  }
};

template <typename T>
struct ViterbiParts {
  double* scores = nullptr;
  uint8_t* pointers8 = nullptr;  // back-pointers, of at most 256 states
  int32_t* pointers32 = nullptr;

  ViterbiParts(const HmmInput<T>& in, Workspace& workspace) {
    const int64_t count = in.batch * in.steps * in.states;
    if (in.states <= 256) {
      pointers8 = workspace.take<uint8_t>(count);
    } else {
      pointers32 = workspace.take<int32_t>(count);
    }
    if (in.states > kWarpStates<T>) scores = workspace.take<double>(2 * in.batch * in.states);
  }
};

template <typename T>
struct SampleParts {
  Messages messages;
  T* log_likelihood;

  SampleParts(const HmmInput<T>& in, Workspace& workspace)
      : messages(take_messages(in, false, true, workspace)),
        log_likelihood(workspace.take<T>(in.batch)) {}
};

}  // namespace

template <typename T>
int64_t hmm_posteriors_workspace(const HmmInput<T>& in, const HmmPosteriors<T>& out) {
  Workspace workspace(nullptr);
  PosteriorParts<T>(in, out, workspace);
  return workspace.bytes();
}

template <typename T>
cudaError_t hmm_posteriors(const HmmInput<T>& in, const HmmPosteriors<T>& out, void* memory,
                           cudaStream_t stream) {
  if (in.batch == 0) return cudaSuccess;
  Workspace workspace(memory);
  const PosteriorParts<T> parts(in, out, workspace);
  const Messages& m = parts.messages;
  const bool pairs = out.xi != nullptr || out.xi_sum != nullptr;
  const HmmUpstream<T> none;
  ONESHOT_RETURN_IF_FAILED(run_messages(in, m, out.log_likelihood, stream));
  if (out.gamma != nullptr || pairs) {
    ONESHOT_RETURN_IF_FAILED(
        hmm_states<T>(in, m, out.log_likelihood, nullptr, out.gamma, nullptr, pairs, stream));
  }
  if (out.xi != nullptr) {
    const HmmPairs<T> to{out.xi, false, false, nullptr};
    ONESHOT_RETURN_IF_FAILED(hmm_pairs<T>(in, m, none, out.log_likelihood, nullptr, to, stream));
  }
  if (out.xi_sum == nullptr) return cudaSuccess;
  const HmmPairs<T> to{out.xi_sum, false, true, parts.pairs};
  return hmm_pairs<T>(in, m, none, out.log_likelihood, nullptr, to, stream);
}

template <typename T>
int64_t hmm_posteriors_backward_workspace(const HmmInput<T>& in, const HmmGradients<T>& out) {
  Workspace workspace(nullptr);
  BackwardParts<T>(in, out, workspace);
  return workspace.bytes();
}

template <typename T>
cudaError_t hmm_posteriors_backward(const HmmInput<T>& in, const HmmUpstream<T>& upstream,
                                    const HmmGradients<T>& out, void* memory, cudaStream_t stream) {
  Workspace workspace(memory);
  const BackwardParts<T> parts(in, out, workspace);
  const HmmMessages& m = parts.messages;
  if (in.batch > 0) {
    ONESHOT_RETURN_IF_FAILED(hmm_log_messages(in, upstream, m, parts.log_likelihood, stream));
    ONESHOT_RETURN_IF_FAILED(hmm_states<T>(in, m, parts.log_likelihood, upstream.log_likelihood,
                                           out.emit, parts.mean, true, stream));
  }
  const HmmPairs<T> to{out.trans, out.trans_shared, out.trans_homogeneous, parts.pairs};
  ONESHOT_RETURN_IF_FAILED(
      hmm_pairs<T>(in, m, upstream, parts.log_likelihood, parts.mean, to, stream));
  ONESHOT_RETURN_IF_FAILED(hmm_boundary<T>(in, out.emit, false, out.init_shared, out.init, stream));
  if (out.final == nullptr) return cudaSuccess;
  return hmm_boundary<T>(in, out.emit, true, out.final_shared, out.final, stream);
}

template <typename T>
int64_t hmm_viterbi_workspace(const HmmInput<T>& in) {
  Workspace workspace(nullptr);
  ViterbiParts<T>(in, workspace);
  return workspace.bytes();
}

template <typename T>
cudaError_t hmm_viterbi(const HmmInput<T>& in, int64_t* path, T* score, void* memory,
                        cudaStream_t stream) {
  if (in.batch == 0) return cudaSuccess;
  Workspace workspace(memory);
  const ViterbiParts<T> parts(in, workspace);
  if (in.states <= kWarpStates<T>)
    return hmm_warp_viterbi(in, parts.pointers8, path, score, stream);
  if (in.states <= 256) {
    return hmm_block_viterbi(in, parts.scores, parts.pointers8, path, score, stream);
  }
  return hmm_block_viterbi(in, parts.scores, parts.pointers32, path, score, stream);
}

template <typename T>
int64_t hmm_sample_workspace(const HmmInput<T>& in) {
  Workspace workspace(nullptr);
  SampleParts<T>(in, workspace);
  return workspace.bytes();
}

template <typename T>
cudaError_t hmm_sample(const HmmInput<T>& in, const HmmSampling& how, int64_t* paths, void* memory,
                       cudaStream_t stream) {
  if (in.batch == 0) return cudaSuccess;
  Workspace workspace(memory);
  const SampleParts<T> parts(in, workspace);
  ONESHOT_RETURN_IF_FAILED(run_messages(in, parts.messages, parts.log_likelihood, stream));
  return hmm_sample_paths<T>(in, parts.messages, how, parts.log_likelihood, paths, stream);
}

#define ONESHOT_INSTANTIATE(T)                                                                    \
  template int64_t hmm_posteriors_workspace(const HmmInput<T>&, const HmmPosteriors<T>&);         \
  template cudaError_t hmm_posteriors(const HmmInput<T>&, const HmmPosteriors<T>&, void*,         \
                                      cudaStream_t);                                              \
  template int64_t hmm_posteriors_backward_workspace(const HmmInput<T>&, const HmmGradients<T>&); \
  template cudaError_t hmm_posteriors_backward(const HmmInput<T>&, const HmmUpstream<T>&,         \
                                               const HmmGradients<T>&, void*, cudaStream_t);      \
  template int64_t hmm_viterbi_workspace(const HmmInput<T>&);                                     \
  template cudaError_t hmm_viterbi(const HmmInput<T>&, int64_t*, T*, void*, cudaStream_t);        \
  template int64_t hmm_sample_workspace(const HmmInput<T>&);                                      \
  template cudaError_t hmm_sample(const HmmInput<T>&, const HmmSampling&, int64_t*, void*,        \
                                  cudaStream_t);
ONESHOT_INSTANTIATE(float)
ONESHOT_INSTANTIATE(double)
#undef ONESHOT_INSTANTIATE

}  // namespace oneshot::cuda
