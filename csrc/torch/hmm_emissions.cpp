// torch ops that combine label sources into emissions (stable ABI only).
#include <optional>
#include <tuple>

#include "cpu/hmm.h"
#include "torch/hmm_tensors.h"
#include "torch/huge_pages.h"

namespace oneshot {
namespace {

struct Evidence {
  Tensor log_emissions, observations;
  std::optional<Tensor> weights;
  bool normalize;

  bool soft() const { return observations.scalar_type() != ScalarType::Long; }

  template <typename T>
  cpu::EmissionInput<T> input() const {
    cpu::EmissionInput<T> in;
    const int64_t last = log_emissions.dim() - 1;
    in.log_emissions = data<T>(log_emissions);
    in.constant = log_emissions.dim() == 3;
    in.soft = soft() ? data<T>(observations) : nullptr;
    in.ids = soft() ? nullptr : data<int64_t>(observations);
    in.weights = data<T>(weights);
    in.normalize = normalize;
    in.tokens = observations.size(0) * observations.size(1);
    in.sources = log_emissions.size(last - 2);
    in.states = log_emissions.size(last - 1);
    in.labels = log_emissions.size(last);
    return in;
  }
};

Evidence checked(const Tensor& log_emissions, const Tensor& observations,
                 const std::optional<Tensor>& weights, bool normalize) {
  check_float_or_double(On::kCpu, log_emissions, "log_emissions");
  const int64_t dims = log_emissions.dim();
  if ((dims != 3 && dims != 5) || log_emissions.size(dims - 1) < 1 ||
      log_emissions.size(dims - 2) < 1) {
    fail("log_emissions must have the shape [B, T, S, K, L] or [S, K, L] with K, L >= 1, got ",
         shape_text(log_emissions));
  }
  const int64_t sources = log_emissions.size(dims - 3), labels = log_emissions.size(dims - 1);
  check_cpu(observations, "observations");
  const bool soft = observations.scalar_type() != ScalarType::Long;
  if (soft) check_like(On::kCpu, observations, "observations", log_emissions, "log_emissions");
  bool fits = observations.dim() == (soft ? 4 : 3) && observations.size(2) == sources &&
              (!soft || observations.size(3) == labels);
  for (int64_t d = 0; fits && dims == 5 && d < 2; ++d) {
    fits = observations.size(d) == log_emissions.size(d);
  }
  if (!fits) {
    fail("observations must have the shape ", soft ? "[B, T, S, L]" : "[B, T, S]",
         " of log_emissions ", shape_text(log_emissions), ", got ", shape_text(observations));
  }
  if (weights) {
    check_like(On::kCpu, *weights, "weights", log_emissions, "log_emissions");
    if (weights->dim() != 1 || weights->size(0) != sources) {
      fail("weights must have the shape [", sources, "], got ", shape_text(*weights));
    }
  }
  Evidence e{torch::stable::contiguous(log_emissions), torch::stable::contiguous(observations),
             dense(weights), normalize};
  if (!soft) {
    const auto* ids = data<int64_t>(e.observations);
    const int64_t bad = cpu::emission_bad_id(ids, e.observations.numel(), labels);
    if (bad >= 0) {
      const int64_t steps = e.observations.size(1), token = bad / sources;
      fail("observations must lie in [-1, ", labels, "), got ", ids[bad], " for sequence ",
           token / steps, ", step ", token % steps, ", source ", bad % sources);
    }
  }
  return e;
}

Tensor combine_emissions(const Tensor& log_emissions, const Tensor& observations,
                         const std::optional<Tensor>& weights, bool normalize) {
  const Evidence e = checked(log_emissions, observations, weights, normalize);
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
  const Evidence e = checked(log_emissions, observations, weights, normalize);
  check_like(On::kCpu, grad, "grad", log_emissions, "log_emissions");
  const int64_t states = log_emissions.size(log_emissions.dim() - 2);
  if (grad.dim() != 3 || grad.size(0) != observations.size(0) ||
      grad.size(1) != observations.size(1) || grad.size(2) != states) {
    fail("grad must have the shape of the result, got ", shape_text(grad));
  }
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
