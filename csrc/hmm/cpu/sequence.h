// One sequence of an HmmInput.
#pragma once

#include <cstdint>

#include "hmm/contract.h"

namespace oneshot::cpu {

template <typename T>
struct HmmSequence {
  const T* init;   // [states]
  const T* final;  // [states] or nullptr
  int64_t length, states;

  HmmSequence(const HmmInput<T>& in, int64_t b)
      : init(in.log_init + b * in.init_stride),
        final(in.log_final == nullptr ? nullptr : in.log_final + b * in.final_stride),
        length(in.length(b)),
        states(in.states),
        emit_(in.log_emit + b * in.emit_batch_stride),
        trans_(in.log_trans + b * in.trans_batch_stride),
        emit_stride_(in.emit_step_stride),
        trans_stride_(in.trans_step_stride) {}

  const T* emit(int64_t t) const { return emit_ + t * emit_stride_; }
  // The matrix that leads into step t >= 1.
  const T* trans_into(int64_t t) const { return trans_ + (t - 1) * trans_stride_; }

 private:
  const T* emit_;
  const T* trans_;
  int64_t emit_stride_, trans_stride_;
};

}  // namespace oneshot::cpu
