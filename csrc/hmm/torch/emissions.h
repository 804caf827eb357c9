// The inputs of combine_emissions on either device, checked.
#pragma once

#include <optional>

#include "hmm/torch/tensors.h"

namespace oneshot {

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

inline Evidence checked(On on, const Tensor& log_emissions, const Tensor& observations,
                        const std::optional<Tensor>& weights, bool normalize) {
  check_float_or_double(on, log_emissions, "log_emissions");
  const int64_t dims = log_emissions.dim();
  if ((dims != 3 && dims != 5) || log_emissions.size(dims - 1) < 1 ||
      log_emissions.size(dims - 2) < 1) {
    fail("log_emissions must have the shape [B, T, S, K, L] or [S, K, L] with K, L >= 1, got ",
         shape_text(log_emissions));
  }
  const int64_t sources = log_emissions.size(dims - 3), labels = log_emissions.size(dims - 1);
  check_on(on, observations, "observations");
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
  Evidence e{torch::stable::contiguous(log_emissions), torch::stable::contiguous(observations),
             dense(weights), normalize};
  if (on == On::kCpu && !soft) {  // on a GPU the device checks them
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

inline void check_upstream(On on, const Tensor& grad, const Evidence& e) {
  check_like(on, grad, "grad", e.log_emissions, "log_emissions");
  const int64_t states = e.log_emissions.size(e.log_emissions.dim() - 2);
  if (grad.dim() != 3 || grad.size(0) != e.observations.size(0) ||
      grad.size(1) != e.observations.size(1) || grad.size(2) != states) {
    fail("grad must have the shape of the result, got ", shape_text(grad));
  }
}

}  // namespace oneshot
