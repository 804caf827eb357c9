#include "cpu/hmm_sweep.h"

#define ONESHOT_KERNEL_BODY "cpu/hmm_wide.inc"
#include "cpu/foreach_isa.h"

namespace oneshot::cpu {

HmmTokenKernels hmm_wide_kernels(int64_t states) {
  ONESHOT_DISPATCH_ISA(hmm::wide_kernels, states);
}

}  // namespace oneshot::cpu
