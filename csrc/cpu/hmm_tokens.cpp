#include "cpu/hmm_sweep.h"

#define ONESHOT_KERNEL_BODY "cpu/hmm_tokens.inc"
#include "cpu/foreach_isa.h"

namespace oneshot::cpu {

HmmTokenKernels hmm_token_kernels(int64_t states) {
  ONESHOT_DISPATCH_ISA(hmm::token_kernels, states);
}

}  // namespace oneshot::cpu
