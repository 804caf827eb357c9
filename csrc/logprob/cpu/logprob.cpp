#include "logprob/cpu/logprob.h"

#define ONESHOT_KERNEL_BODY "logprob/cpu/logprob.inc"
#include "cpu/foreach_isa.h"

namespace oneshot::cpu {

int64_t logprob_forward(const LogprobForward& args, int64_t begin, int64_t end) {
  ONESHOT_DISPATCH_ISA(logprob_forward_rows, args, begin, end);
}

int64_t logprob_backward(const LogprobBackward& args, int64_t begin, int64_t end) {
  ONESHOT_DISPATCH_ISA(logprob_backward_rows, args, begin, end);
}

}  // namespace oneshot::cpu
