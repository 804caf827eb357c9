// torch ops that combine label sources into emissions (stable ABI only).
#include <optional>
#include <tuple>

#include "hmm/contract.h"
#include "hmm/torch/emissions.h"
#include "torch/huge_pages.h"

namespace oneshot {
namespace {

Tensor combine_emissions(const Tensor& log_emissions, const Tensor& observations,
                         const std::optional<Tensor>& weights, bool normalize) {
  const Evidence e = checked(On::kCpu, log_emissions, observations, weights, normalize);
  const Tensor out = torch::stable::new_empty(
      log_emissions,
      {observations.size(0), observations.size(1), log_emissions.size(log_emissions.dim() - 2)});
  if (out.scalar_type() == ScalarType::Float) {
    cpu::combine_emissions(e.input<float>(), mutable_data<float>(out), torch_workers());
  } else {
    cpu::combine_emissions(e.input<double>(), mutable_data<double>(out), torch_workers());
  }
  return out;
}

std::tuple<Tensor, Tensor, Tensor> combine_emissions_backward(const Tensor& grad,
                                                              const Tensor& log_emissions,
                                                              const Tensor& observations,
                                                              const std::optional<Tensor>& weights,
                                                              bool normalize) {
  const Evidence e = checked(On::kCpu, log_emissions, observations, weights, normalize);
  check_upstream(On::kCpu, grad, e);
  const Tensor upstream = torch::stable::contiguous(grad);
  const Tensor by_log_emissions = torch::stable::new_empty(log_emissions, log_emissions.sizes());
  const Tensor by_soft = e.soft() ? torch::stable::new_empty(observations, observations.sizes())
                                  : torch::stable::new_empty(grad, {0});
  const Tensor by_weights = weights ? torch::stable::new_empty(*weights, weights->sizes())
                                    : torch::stable::new_empty(grad, {0});
  prefer_huge_pages(by_log_emissions.mutable_data_ptr(),
                    by_log_emissions.numel() * int64_t(by_log_emissions.element_size()));
  const auto run = [&](auto type) {
    using T = decltype(type);
    cpu::EmissionGradients<T> out;
    out.upstream = data<T>(upstream);
    out.log_emissions = mutable_data<T>(by_log_emissions);
    out.soft = e.soft() ? mutable_data<T>(by_soft) : nullptr;
    out.weights = weights ? mutable_data<T>(by_weights) : nullptr;
    cpu::combine_emissions_backward(e.input<T>(), out, torch_workers());
  };
  if (grad.scalar_type() == ScalarType::Float) {
    run(float());
  } else {
    run(double());
  }
  return {by_log_emissions, by_soft, by_weights};
}

}  // namespace
}  // namespace oneshot

STABLE_TORCH_LIBRARY_IMPL(oneshot, CPU, m) {
  m.impl("combine_emissions", TORCH_BOX(&oneshot::combine_emissions));
  m.impl("combine_emissions_backward", TORCH_BOX(&oneshot::combine_emissions_backward));
}
