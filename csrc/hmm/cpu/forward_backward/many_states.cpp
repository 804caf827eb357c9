#include "hmm/cpu/forward_backward/sweep.h"

#define ONESHOT_KERNEL_BODY "hmm/cpu/forward_backward/many_states.inc"
#include "cpu/foreach_isa.h"

namespace oneshot::cpu {

HmmPerStepKernels hmm_many_states_kernels(int64_t states) {
  ONESHOT_DISPATCH_ISA(hmm::many_states_kernels, states);
}

}  // namespace oneshot::cpu
