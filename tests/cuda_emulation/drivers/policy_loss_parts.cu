// C entry points of the value loss and importance weights, for ctypes; layouts as in
// policy_loss.cu.
#include "policy_loss/cuda/policy_loss_parts.cuh"

using namespace oneshot;

namespace {

Sequences sequences(const int64_t* shape, const int64_t* cu_seqlens, const bool* mask) {
  Sequences s;
  s.batch = shape[0];
  s.width = shape[1];
  s.cu_seqlens = cu_seqlens;
  s.mask = mask;
  s.wide = shape[2] != 0;
  return s;
}

TokenView view(const void* const* pointers, const int64_t* layouts, int i) {
  return {pointers[i], DType(layouts[3 * i]), layouts[3 * i + 1], layouts[3 * i + 2]};
}

}  // namespace

extern "C" int emu_value_loss(const int64_t* shape, const int64_t* cu_seqlens, const bool* mask,
                              const void* const* pointers, const int64_t* layouts,
                              const double* numbers, const void* count, int kind, void* sums,
                              void* loss, void* metrics, void* weights) {
  const ValueInputs in{sequences(shape, cu_seqlens, mask), view(pointers, layouts, 0),
                       view(pointers, layouts, 1), view(pointers, layouts, 2), numbers[0]};
  const Normalizer how{Aggregate(int(numbers[1])), numbers[2] != 0.0, 0.0, numbers[3]};
  return int(cuda::value_loss(in, how, shape[3], {count, cuda::DeviceScalar::Kind(kind)},
                              static_cast<ValueSums*>(sums), loss, metrics,
                              static_cast<double*>(weights), nullptr));
}

extern "C" int emu_value_loss_backward(const int64_t* shape, const int64_t* cu_seqlens,
                                       const bool* mask, const void* const* pointers,
                                       const int64_t* layouts, double clip, const void* grad_loss,
                                       int kind, const void* weights, void* by_values) {
  const ValueInputs in{sequences(shape, cu_seqlens, mask), view(pointers, layouts, 0),
                       view(pointers, layouts, 1), view(pointers, layouts, 2), clip};
  return int(cuda::value_loss_backward(in, shape[3], {grad_loss, cuda::DeviceScalar::Kind(kind)},
                                       static_cast<const double*>(weights), by_values, nullptr));
}

extern "C" int emu_importance_weights(const int64_t* shape, const int64_t* cu_seqlens,
                                      const bool* mask, const void* const* pointers,
                                      const int64_t* layouts, const double* numbers, void* sums,
                                      void* normalizer, void* weights, void* metrics) {
  const WeightInputs in{sequences(shape, cu_seqlens, mask),
                        view(pointers, layouts, 0),
                        view(pointers, layouts, 1),
                        numbers[0] != 0.0,
                        numbers[1] != 0.0,
                        numbers[2],
                        numbers[3],
                        numbers[4],
                        numbers[5] != 0.0,
                        numbers[6] != 0.0,
                        weights};
  return int(cuda::importance_weights(in, shape[3], static_cast<WeightSums*>(sums),
                                      static_cast<double*>(normalizer), metrics, nullptr));
}

extern "C" int64_t emu_parts_workspace(int64_t batch) {
  const size_t larger =
      sizeof(ValueSums) > sizeof(WeightSums) ? sizeof(ValueSums) : sizeof(WeightSums);
  return batch * int64_t(larger);
}
