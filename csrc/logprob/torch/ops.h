// torch ops of the `logprob` family, one body for both devices. `Device` runs the kernels of a
// call: logprob.cpp has the one of the CPU, logprob_cuda.cpp the one of a GPU.
#pragma once

#include <tuple>
#include <vector>

#include "logprob/torch/input.h"

namespace oneshot {

template <typename Device>
struct LogprobOps {
  static std::tuple<Tensor, Tensor, Tensor> forward(const Tensor& logits, const Tensor& targets,
                                                    const OptionalTensor& mask,
                                                    const OptionalTensor& keep_mask,
                                                    double temperature, bool /*inplace_backward*/) {
    const Input in = make_input(Device::kOn, logits, targets, mask, keep_mask, temperature);
    const Device device(logits);
    const ScalarType real = real_type(logits);
    std::vector<int64_t> sizes = leading_sizes(logits);
    Tensor entropy = fresh(logits, sizes, real);
    sizes.push_back(kLogprobStats);
    Tensor stats = fresh(logits, sizes, real);
    Tensor logprobs = fresh(logits, sizes_of(targets), real);
    const LogprobForward args{in.pointers, logprobs.mutable_data_ptr(), entropy.mutable_data_ptr(),
                              stats.mutable_data_ptr()};
    device.forward(args, row_count(in.logits));
    return {logprobs, entropy, stats};
  }

  static Tensor backward(const OptionalTensor& grad_logprobs, const OptionalTensor& grad_entropy,
                         const Tensor& logits, const Tensor& targets, const OptionalTensor& mask,
                         const OptionalTensor& keep_mask, const Tensor& logprobs,
                         const Tensor& stats, double temperature) {
    const Input in = make_input(Device::kOn, logits, targets, mask, keep_mask, temperature);
    Tensor grad = fresh_like(logits);
    Rows rows;
    rows_of(grad, grad, rows);
    backward_into(grad_logprobs, grad_entropy, in, logprobs, stats, grad.mutable_data_ptr(), rows);
    return grad;
  }

  static void backward_inplace(const OptionalTensor& grad_logprobs,
                               const OptionalTensor& grad_entropy, Tensor logits,
                               const Tensor& targets, const OptionalTensor& mask,
                               const OptionalTensor& keep_mask, const Tensor& logprobs,
                               const Tensor& stats, double temperature) {
    const Input in = make_input(Device::kOn, logits, targets, mask, keep_mask, temperature);
    check_overwritable(in, logits);
    backward_into(grad_logprobs, grad_entropy, in, logprobs, stats, logits.mutable_data_ptr(),
                  in.pointers.rows);
  }

 private:
  static void backward_into(const OptionalTensor& grad_logprobs, const OptionalTensor& grad_entropy,
                            const Input& in, const Tensor& logprobs, const Tensor& stats,
                            void* grad_logits, const Rows& grad_rows) {
    const Device device(in.logits);
    const BackwardInput b = make_backward(Device::kOn, grad_logprobs, grad_entropy, in, logprobs,
                                          stats, grad_logits, grad_rows);
    device.backward(b.pointers, row_count(in.logits));
  }
};

template <typename Device, typename Library>
void register_logprob(Library& m) {
  m.impl("token_logprobs_and_entropy", TORCH_BOX(&LogprobOps<Device>::forward));
  m.impl("token_logprobs_and_entropy_backward", TORCH_BOX(&LogprobOps<Device>::backward));
  m.impl("token_logprobs_and_entropy_backward_", TORCH_BOX(&LogprobOps<Device>::backward_inplace));
}

}  // namespace oneshot
