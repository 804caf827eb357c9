#include "cpu/hmm_sweep.h"

#define ONESHOT_KERNEL_BODY "cpu/hmm_tokens.inc"
#include "cpu/foreach_isa.h"

namespace oneshot::cpu {

HmmTokenKernels hmm_token_kernels(int64_t states) {
#if ONESHOT_X86
  // Half-empty vectors gain nothing: rows of up to eight states fit those of AVX2.
  if (isa() == Isa::kAvx512 && states <= 8) return avx2::hmm::token_kernels(states);
#endif
  ONESHOT_DISPATCH_ISA(hmm::token_kernels, states);
}

}  // namespace oneshot::cpu
