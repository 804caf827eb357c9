#include <algorithm>
#include <memory>

#include "hmm/cpu/hmm.h"
#include "hmm/cpu/sequence.h"

#define ONESHOT_KERNEL_BODY "hmm/cpu/viterbi.inc"
#include "cpu/foreach_isa.h"

namespace oneshot::cpu {
namespace {

template <typename T, typename Index>
void best_path(const HmmSequence<T>& s, T* score, Index* pointers, int64_t pitch, int64_t* path,
               T* best_score) {
  ONESHOT_DISPATCH_ISA(hmm::viterbi_path, s, score, pointers, pitch, path, best_score);
}

// Index holds the number of every state.
template <typename Index, typename T>
void viterbi(const HmmInput<T>& in, int64_t* path, T* score, const Workers& workers) {
  const int64_t pitch = (in.states + 15) / 16 * 16;  // whole vectors at every level
  workers.run(in.batch, [&](int64_t b) {
    const int64_t length = in.length(b);
    int64_t* own = path + b * in.steps;
    std::fill(own + length, own + in.steps, -1);
    score[b] = T(0);
    if (length == 0) return;
    const std::unique_ptr<T[]> scores(new T[size_t(2 * pitch)]);
    const std::unique_ptr<Index[]> pointers(new Index[size_t(length * pitch)]);
    best_path(HmmSequence<T>(in, b), scores.get(), pointers.get(), pitch, own, score + b);
  });
}

template <typename T>
void viterbi_any(const HmmInput<T>& in, int64_t* path, T* score, const Workers& workers) {
  if (in.states <= 256) return viterbi<uint8_t>(in, path, score, workers);
  if (in.states <= 65536) return viterbi<uint16_t>(in, path, score, workers);
  return viterbi<uint32_t>(in, path, score, workers);
}

}  // namespace

void hmm_viterbi(const HmmInput<float>& in, int64_t* path, float* score, const Workers& workers) {
  viterbi_any(in, path, score, workers);
}

void hmm_viterbi(const HmmInput<double>& in, int64_t* path, double* score, const Workers& workers) {
  viterbi_any(in, path, score, workers);
}

}  // namespace oneshot::cpu
