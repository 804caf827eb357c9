// Evidence of several label sources, combined into the emissions of one chain. A row is what one
// source says of one token in one state, over L labels; all of it is computed in double. Backward
// keeps the logarithms of every row, so that each gradient is one pass with nothing to share.
#include "hmm/cuda/posteriors.cuh"

namespace oneshot::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int64_t kTokens = 256;  // that one part of a sum over tokens takes

// Calls body(i) for i < count, a thread each.
template <typename Body>
__device__ __forceinline__ void for_each_index(int64_t count, const Body& body) {
  const int64_t stride = int64_t(gridDim.x) * blockDim.x;
  for (int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; i < count; i += stride) body(i);
}

template <typename T>
struct Source {
  const T* log_emissions;  // of one state, [labels]
  const T* soft;           // weights of the labels; or nullptr:
  int64_t id;              // the only label

  __device__ Source(const EmissionInput<T>& in, int64_t token, int64_t s, int64_t state)
      : log_emissions(in.log_emissions +
                      (((in.constant ? 0 : token * in.sources) + s) * in.states + state) *
                          in.labels),
        soft(in.soft == nullptr ? nullptr : in.soft + (token * in.sources + s) * in.labels),
        id(-1) {
    if (soft != nullptr) return;
    id = in.ids[token * in.sources + s];
    require(id >= -1 && id < in.labels);
  }

  __device__ double x(int64_t label) const {
    return soft == nullptr ? (label == id ? 1.0 : 0.0) : double(soft[label]);
  }
  // Log of emission times x; a label of weight 0 is not looked at.
  __device__ double term(int64_t label) const {
    const double weight = x(label);
    return weight == 0.0 ? kNever : double(log_emissions[label]) + log(weight);
  }
};

template <typename Term>
__device__ double log_sum_exp(int64_t count, const Term& term) {
  double high = kNever;
  for (int64_t j = 0; j < count; ++j) high = term(j) > high ? term(j) : high;
  if (high == kNever || high == -kNever) high = 0.0;
  double sum = 0.0;
  for (int64_t j = 0; j < count; ++j) sum += exp(term(j) - high);
  return high + log(sum);
}

struct RowLogs {
  bool voice;         // the source does not abstain
  double sum;         // log-likelihood of the state
  double normalizer;  // what makes log-probabilities of logits
};

template <typename T>
__device__ RowLogs row_logs(const EmissionInput<T>& in, const Source<T>& source) {
  RowLogs logs{source.id >= 0, kNever, 0.0};
  for (int64_t j = 0; source.soft != nullptr && j < in.labels; ++j) {
    logs.voice |= source.x(j) != 0.0;
  }
  if (!logs.voice) return logs;
  if (in.normalize) {
    logs.normalizer =
        log_sum_exp(in.labels, [&](int64_t j) { return double(source.log_emissions[j]); });
  }
  logs.sum = source.soft == nullptr
                 ? double(source.log_emissions[source.id])
                 : log_sum_exp(in.labels, [&](int64_t j) { return source.term(j); });
  logs.sum -= logs.normalizer;
  return logs;
}

template <typename T>
__device__ double weight_of(const EmissionInput<T>& in, int64_t s) {
  return in.weights == nullptr ? 1.0 : double(in.weights[s]);
}

// A thread for each token and state.
template <typename T>
__global__ void __launch_bounds__(kThreads, 4) emissions_kernel(EmissionInput<T> in, T* out) {
  for_each_index(in.tokens * in.states, [&](int64_t at) {
    const int64_t token = at / in.states, state = at - token * in.states;
    double sum = 0.0;
    for (int64_t s = 0; s < in.sources; ++s) {
      const double weight = weight_of(in, s);
      const RowLogs logs = row_logs(in, Source<T>(in, token, s, state));
      if (weight != 0.0 && logs.voice) sum += weight * logs.sum;
    }
    out[at] = T(sum);
  });
}

// ---- backward

// Logs of every row, [tokens, sources, states]; -inf for one through which nothing passes.
struct Logs {
  double *sum, *normalizer;
};

template <typename T>
__global__ void __launch_bounds__(kThreads, 4) logs_kernel(EmissionInput<T> in, Logs to) {
  for_each_index(in.tokens * in.sources * in.states, [&](int64_t at) {
    const int64_t place = at / in.states, token = place / in.sources;
    const Source<T> source(in, token, place - token * in.sources, at - place * in.states);
    const RowLogs logs = row_logs(in, source);
    to.sum[at] = logs.sum;
    to.normalizer[at] = logs.normalizer;
  });
}

// What one row receives of the upstream gradient; 0 where nothing passes.
template <typename T>
__device__ double upstream_of(const EmissionInput<T>& in, const T* upstream, double log_sum,
                              int64_t token, int64_t state) {
  return log_sum == kNever ? 0.0 : double(upstream[token * in.states + state]);
}

// Gradient of one entry of a matrix at one token.
template <typename T>
__device__ double by_entry(const EmissionInput<T>& in, const T* upstream, const Logs& logs,
                           int64_t token, int64_t s, int64_t state, int64_t label) {
  const int64_t row = (token * in.sources + s) * in.states + state;
  const double log_sum = logs.sum[row];
  const double scale = upstream_of(in, upstream, log_sum, token, state) * weight_of(in, s);
  if (scale == 0.0) return 0.0;
  const Source<T> source(in, token, s, state);
  double share = exp(source.term(label) - logs.normalizer[row] - log_sum);
  if (in.normalize) share -= exp(double(source.log_emissions[label]) - logs.normalizer[row]);
  return scale * share;
}

template <typename T>
__global__ void __launch_bounds__(kThreads, 4)
    matrices_kernel(EmissionInput<T> in, const T* upstream, Logs logs, T* out) {
  for_each_index(in.tokens * in.sources * in.states * in.labels, [&](int64_t at) {
    const int64_t row = at / in.labels, place = row / in.states, token = place / in.sources;
    out[at] = T(by_entry(in, upstream, logs, token, place - token * in.sources,
                         row - place * in.states, at - row * in.labels));
  });
}

// The same for matrices that do not change: parts [chunks of tokens, sources, states, labels].
template <typename T>
__global__ void __launch_bounds__(kThreads, 4)
    constant_matrices_kernel(EmissionInput<T> in, const T* upstream, Logs logs, int64_t chunks,
                             double* parts) {
  const int64_t entries = in.sources * in.states * in.labels;
  for_each_index(chunks * entries, [&](int64_t at) {
    const int64_t chunk = at / entries, entry = at - chunk * entries, row = entry / in.labels;
    const int64_t s = row / in.states, first = chunk * kTokens;
    double sum = 0.0;
    for (int64_t n = first; n < first + kTokens && n < in.tokens; ++n) {
      sum += by_entry(in, upstream, logs, n, s, row - s * in.states, entry - row * in.labels);
    }
    parts[at] = sum;
  });
}

template <typename T>
__global__ void __launch_bounds__(kThreads, 4)
    soft_kernel(EmissionInput<T> in, const T* upstream, Logs logs, T* out) {
  for_each_index(in.tokens * in.sources * in.labels, [&](int64_t at) {
    const int64_t place = at / in.labels, label = at - place * in.labels;
    const int64_t token = place / in.sources, s = place - token * in.sources;
    double sum = 0.0;
    for (int64_t i = 0; i < in.states; ++i) {
      const int64_t row = place * in.states + i;
      const double scale = upstream_of(in, upstream, logs.sum[row], token, i) * weight_of(in, s);
      if (scale == 0.0) continue;
      const double log_emission =
          double(Source<T>(in, token, s, i).log_emissions[label]) - logs.normalizer[row];
      sum += scale * exp(log_emission - logs.sum[row]);
    }
    out[at] = T(sum);
  });
}

// Parts [sources, chunks of tokens].
template <typename T>
__global__ void __launch_bounds__(kThreads, 4)
    weights_kernel(EmissionInput<T> in, const T* upstream, Logs logs, int64_t chunks,
                   double* parts) {
  ONESHOT_SHARED(double, scratch, kThreads / 32);
  for (int64_t part = blockIdx.x; part < in.sources * chunks; part += gridDim.x) {
    const int64_t s = part / chunks, first = (part - s * chunks) * kTokens;
    const int64_t end = first + kTokens < in.tokens ? first + kTokens : in.tokens;
    double sum = 0.0;
    for (int64_t at = first * in.states + threadIdx.x; at < end * in.states; at += kThreads) {
      const int64_t token = at / in.states, state = at - token * in.states;
      const double log_sum = logs.sum[(token * in.sources + s) * in.states + state];
      const double up = upstream_of(in, upstream, log_sum, token, state);
      if (up != 0.0) sum += up * log_sum;
    }
    sum = block_sum(sum, scratch);
    if (threadIdx.x == 0) parts[part] = sum;
  }
}

unsigned blocks_of(int64_t count) { return blocks_for((count + kThreads - 1) / kThreads); }

template <typename T>
struct Parts {
  int64_t rows, entries, chunks;
  Logs logs;
  double* sums;

  Parts(const EmissionInput<T>& in, void* memory)
      : rows(in.tokens * in.sources * in.states),
        entries(in.sources * in.states * in.labels),
        chunks((in.tokens + kTokens - 1) / kTokens),
        logs{static_cast<double*>(memory), nullptr},
        sums(nullptr) {
    if (memory == nullptr) return;
    logs.normalizer = logs.sum + rows;
    sums = logs.normalizer + rows;
  }
  int64_t bytes() const { return int64_t(sizeof(double)) * (2 * rows + chunks * entries); }
};

}  // namespace

template <typename T>
cudaError_t combine_emissions(const EmissionInput<T>& in, T* out, cudaStream_t stream) {
  if (in.tokens == 0) return cudaSuccess;
  return launch(emissions_kernel<T>, blocks_of(in.tokens * in.states), kThreads, 0, stream, in,
                out);
}

template <typename T>
int64_t combine_emissions_backward_workspace(const EmissionInput<T>& in) {
  return Parts<T>(in, nullptr).bytes();
}

template <typename T>
cudaError_t combine_emissions_backward(const EmissionInput<T>& in, const EmissionGradients<T>& out,
                                       void* memory, cudaStream_t stream) {
  const Parts<T> parts(in, memory);
  const Logs& logs = parts.logs;
  if (parts.entries == 0) return cudaSuccess;
  if (in.tokens > 0) {
    ONESHOT_RETURN_IF_FAILED(
        launch(logs_kernel<T>, blocks_of(parts.rows), kThreads, 0, stream, in, logs));
  }
  if (in.constant) {
    if (in.tokens > 0) {
      ONESHOT_RETURN_IF_FAILED(launch(constant_matrices_kernel<T>,
                                      blocks_of(parts.chunks * parts.entries), kThreads, 0, stream,
                                      in, out.upstream, logs, parts.chunks, parts.sums));
    }
    ONESHOT_RETURN_IF_FAILED(
        sum_parts(parts.sums, 1, parts.chunks, parts.entries, out.log_emissions, stream));
  } else if (in.tokens > 0) {
    ONESHOT_RETURN_IF_FAILED(launch(matrices_kernel<T>, blocks_of(in.tokens * parts.entries),
                                    kThreads, 0, stream, in, out.upstream, logs,
                                    out.log_emissions));
  }
  if (out.soft != nullptr && in.tokens > 0) {
    ONESHOT_RETURN_IF_FAILED(launch(soft_kernel<T>, blocks_of(in.tokens * in.sources * in.labels),
                                    kThreads, 0, stream, in, out.upstream, logs, out.soft));
  }
  if (out.weights == nullptr) return cudaSuccess;
  if (in.tokens > 0) {
    ONESHOT_RETURN_IF_FAILED(launch(weights_kernel<T>, blocks_for(in.sources * parts.chunks),
                                    kThreads, 0, stream, in, out.upstream, logs, parts.chunks,
                                    parts.sums));
  }
  return sum_parts(parts.sums, in.sources, parts.chunks, 1, out.weights, stream);
}

#define ONESHOT_INSTANTIATE(T)                                                       \
  template cudaError_t combine_emissions(const EmissionInput<T>&, T*, cudaStream_t); \
  template int64_t combine_emissions_backward_workspace(const EmissionInput<T>&);    \
  template cudaError_t combine_emissions_backward(                                   \
      const EmissionInput<T>&, const EmissionGradients<T>&, void*, cudaStream_t);
ONESHOT_INSTANTIATE(float)
ONESHOT_INSTANTIATE(double)
#undef ONESHOT_INSTANTIATE

}  // namespace oneshot::cuda
