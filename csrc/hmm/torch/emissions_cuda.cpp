// torch ops that combine label sources into emissions on CUDA tensors (stable ABI only).
#include <optional>
#include <tuple>

#include "hmm/cuda/hmm.cuh"
#include "hmm/torch/emissions.h"
#include "torch/cuda_stream.h"

namespace oneshot {
namespace {

Evidence checked_on_device(const Tensor& log_emissions, const Tensor& observations,
                           const std::optional<Tensor>& weights, bool normalize) {
  check_on(On::kCuda, log_emissions, "log_emissions");
  check_cuda(observations, "observations", log_emissions, "log_emissions");
  if (weights) check_cuda(*weights, "weights", log_emissions, "log_emissions");
  return checked(On::kCuda, log_emissions, observations, weights, normalize);
}

Tensor combine_emissions(const Tensor& log_emissions, const Tensor& observations,
                         const std::optional<Tensor>& weights, bool normalize) {
  const OnStreamOf stream(log_emissions);
  const Evidence e = checked_on_device(log_emissions, observations, weights, normalize);
  const Tensor out = torch::stable::new_empty(
      log_emissions,
      {observations.size(0), observations.size(1), log_emissions.size(log_emissions.dim() - 2)});
  with_type(out, [&](auto type) {
    using T = decltype(type);
    check_launch(cuda::combine_emissions(e.input<T>(), mutable_data<T>(out), stream.get()),
                 "combine_emissions");
  });
  return out;
}

std::tuple<Tensor, Tensor, Tensor> combine_emissions_backward(const Tensor& grad,
                                                              const Tensor& log_emissions,
                                                              const Tensor& observations,
                                                              const std::optional<Tensor>& weights,
                                                              bool normalize) {
  const OnStreamOf stream(log_emissions);
  const Evidence e = checked_on_device(log_emissions, observations, weights, normalize);
  check_upstream(On::kCuda, grad, e);
  const Tensor upstream = torch::stable::contiguous(grad);
  const Tensor by_log_emissions = torch::stable::new_empty(log_emissions, log_emissions.sizes());
  const Tensor by_soft = e.soft() ? torch::stable::new_empty(observations, observations.sizes())
                                  : torch::stable::new_empty(grad, {0});
  const Tensor by_weights = weights ? torch::stable::new_empty(*weights, weights->sizes())
                                    : torch::stable::new_empty(grad, {0});
  with_type(grad, [&](auto type) {
    using T = decltype(type);
    const auto in = e.input<T>();
    const cpu::EmissionGradients<T> out{data<T>(upstream), mutable_data<T>(by_log_emissions),
                                        e.soft() ? mutable_data<T>(by_soft) : nullptr,
                                        weights ? mutable_data<T>(by_weights) : nullptr};
    const Tensor workspace = device_bytes(grad, cuda::combine_emissions_backward_workspace(in));
    check_launch(
        cuda::combine_emissions_backward(in, out, workspace.mutable_data_ptr(), stream.get()),
        "combine_emissions_backward");
  });
  return {by_log_emissions, by_soft, by_weights};
}

}  // namespace
}  // namespace oneshot

STABLE_TORCH_LIBRARY_IMPL(oneshot, CUDA, m) {
  m.impl("combine_emissions", TORCH_BOX(&oneshot::combine_emissions));
  m.impl("combine_emissions_backward", TORCH_BOX(&oneshot::combine_emissions_backward));
}
