// torch ops that combine label sources into emissions, one body for both devices. `Device` runs the
// kernels of a call: emissions.cpp has the one of the CPU, emissions_cuda.cpp the one of a GPU.
#pragma once

#include <tuple>

#include "hmm/contract.h"
#include "torch/tensors.h"

namespace oneshot {

struct Evidence {
  Tensor log_emissions, observations;
  OptionalTensor weights;
  bool normalize;

  bool soft() const { return observations.scalar_type() != ScalarType::Long; }

  template <typename T>
  EmissionInput<T> input() const {
    EmissionInput<T> in;
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

inline Evidence checked(On on, const Tensor& log_emissions, const Tensor& observations,
                        const OptionalTensor& weights, bool normalize) {
  check_float_or_double(on, log_emissions, "log_emissions");
  const int64_t dims = log_emissions.dim();
  if ((dims != 3 && dims != 5) || log_emissions.size(dims - 1) < 1 ||
      log_emissions.size(dims - 2) < 1) {
    fail("log_emissions must have the shape [B, T, S, K, L] or [S, K, L] with K, L >= 1, got ",
         shape_text(log_emissions));
  }
  const int64_t sources = log_emissions.size(dims - 3), labels = log_emissions.size(dims - 1);
  check_beside(on, observations, "observations", log_emissions, "log_emissions");
  const bool soft = observations.scalar_type() != ScalarType::Long;
  if (soft) check_like(on, observations, "observations", log_emissions, "log_emissions");
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
    check_like(on, *weights, "weights", log_emissions, "log_emissions");
    if (weights->dim() != 1 || weights->size(0) != sources) {
      fail("weights must have the shape [", sources, "], got ", shape_text(*weights));
    }
  }
  Evidence e{dense(log_emissions), dense(observations), dense(weights), normalize};
  if (on == On::kCpu && !soft) {  // on a GPU the device checks them
    const auto* ids = data<int64_t>(e.observations);
    const int64_t bad = emission_bad_id(ids, e.observations.numel(), labels);
    if (bad >= 0) {
      const int64_t steps = e.observations.size(1), token = bad / sources;
      fail("observations must lie in [-1, ", labels, "), got ", ids[bad], " for sequence ",
           token / steps, ", step ", token % steps, ", source ", bad % sources);
    }
  }
  return e;
}

inline void check_upstream(On on, const Tensor& grad, const Evidence& e) {
  check_like(on, grad, "grad", e.log_emissions, "log_emissions");
  const int64_t states = e.log_emissions.size(e.log_emissions.dim() - 2);
  if (grad.dim() != 3 || grad.size(0) != e.observations.size(0) ||
      grad.size(1) != e.observations.size(1) || grad.size(2) != states) {
    fail("grad must have the shape of the result, got ", shape_text(grad));
  }
}

template <typename Device>
struct EmissionOps {
  static Tensor combine(const Tensor& log_emissions, const Tensor& observations,
                        const OptionalTensor& weights, bool normalize) {
    const Evidence e = checked(Device::kOn, log_emissions, observations, weights, normalize);
    const Device device(log_emissions);
    const Tensor out = fresh(log_emissions, {observations.size(0), observations.size(1),
                                             log_emissions.size(log_emissions.dim() - 2)});
    with_real_type(out, [&](auto type) {
      using T = decltype(type);
      device.combine(e.input<T>(), mutable_data<T>(out));
    });
    return out;
  }

  static std::tuple<Tensor, Tensor, Tensor> combine_backward(const Tensor& grad,
                                                             const Tensor& log_emissions,
                                                             const Tensor& observations,
                                                             const OptionalTensor& weights,
                                                             bool normalize) {
    const Evidence e = checked(Device::kOn, log_emissions, observations, weights, normalize);
    check_upstream(Device::kOn, grad, e);
    const Device device(log_emissions);
    const Tensor upstream = dense(grad);
    const Tensor by_log_emissions = fresh_like(log_emissions);
    const Tensor by_soft = e.soft() ? fresh_like(observations) : nothing(grad);
    const Tensor by_weights = weights ? fresh_like(*weights) : nothing(grad);
    with_real_type(grad, [&](auto type) {
      using T = decltype(type);
      const EmissionGradients<T> out{data<T>(upstream), mutable_data<T>(by_log_emissions),
                                     e.soft() ? mutable_data<T>(by_soft) : nullptr,
                                     weights ? mutable_data<T>(by_weights) : nullptr};
      device.combine_backward(e.input<T>(), out);
    });
    return {by_log_emissions, by_soft, by_weights};
  }
};

template <typename Device, typename Library>
void register_emissions(Library& m) {
  m.impl("combine_emissions", TORCH_BOX(&EmissionOps<Device>::combine));
  m.impl("combine_emissions_backward", TORCH_BOX(&EmissionOps<Device>::combine_backward));
}

}  // namespace oneshot
