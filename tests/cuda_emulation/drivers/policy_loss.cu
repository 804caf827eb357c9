// C entry points of the `policy_loss` launchers, for ctypes. `pointers` and `layouts` follow the
// order of PolicyInputs; a layout is dtype, row stride, token stride.
#include "policy_loss/cuda/policy_loss.cuh"

using namespace oneshot;

namespace {

PolicyInputs inputs(const int64_t* shape, const int64_t* cu_seqlens, const bool* mask,
                    const void* const* pointers, const int64_t* layouts, const double* options) {
  PolicyInputs in{};
  in.sequences.batch = shape[0];
  in.sequences.width = shape[1];
  in.sequences.cu_seqlens = cu_seqlens;
  in.sequences.mask = mask;
  in.sequences.wide = shape[2] != 0;
  TokenView* const views[] = {&in.logprobs,     &in.old_logprobs, &in.advantages,
                              &in.ref_logprobs, &in.entropy,      &in.importance_weights};
  for (int i = 0; i < 6; ++i) {
    *views[i] = {pointers[i], DType(layouts[3 * i]), layouts[3 * i + 1], layouts[3 * i + 2]};
  }
  in.options = policy_options(options, kPolicyOptions, int64_t(options[kPolicyOptions]));
  return in;
}

}  // namespace

extern "C" int64_t emu_policy_workspace(int64_t batch) {
  return batch * int64_t(sizeof(PolicySums));
}

extern "C" int emu_policy_loss(const int64_t* shape, const int64_t* cu_seqlens, const bool* mask,
                               const void* const* pointers, const int64_t* layouts,
                               const double* options, const void* count, int count_kind, void* sums,
                               void* loss, void* metrics, void* weights) {
  return int(cuda::policy_loss(inputs(shape, cu_seqlens, mask, pointers, layouts, options),
                               shape[3], {count, cuda::DeviceScalar::Kind(count_kind)},
                               static_cast<PolicySums*>(sums), loss, metrics,
                               static_cast<double*>(weights), nullptr));
}

extern "C" int emu_policy_loss_backward(const int64_t* shape, const int64_t* cu_seqlens,
                                        const bool* mask, const void* const* pointers,
                                        const int64_t* layouts, const double* options,
                                        const void* grad_loss, int kind, const void* weights,
                                        void* by_logprobs, void* by_entropy) {
  return int(cuda::policy_loss_backward(inputs(shape, cu_seqlens, mask, pointers, layouts, options),
                                        shape[3], {grad_loss, cuda::DeviceScalar::Kind(kind)},
                                        static_cast<const double*>(weights), by_logprobs,
                                        by_entropy, nullptr));
}
