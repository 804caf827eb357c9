// C entry points of the combine_emissions launchers, for ctypes. inputs: log_emissions, soft, ids,
// weights; numbers: tokens, sources, states, labels, constant, normalize.
#include "hmm/cuda/hmm.cuh"

using namespace oneshot;

namespace {

template <typename T>
EmissionInput<T> input(const void* const* inputs, const int64_t* numbers) {
  EmissionInput<T> in;
  in.log_emissions = static_cast<const T*>(inputs[0]);
  in.soft = static_cast<const T*>(inputs[1]);
  in.ids = static_cast<const int64_t*>(inputs[2]);
  in.weights = static_cast<const T*>(inputs[3]);
  in.tokens = numbers[0], in.sources = numbers[1];
  in.states = numbers[2], in.labels = numbers[3];
  in.constant = numbers[4] != 0, in.normalize = numbers[5] != 0;
  return in;
}

template <typename T>
int run(const void* const* inputs, const int64_t* numbers, void* out) {
  return int(cuda::combine_emissions(input<T>(inputs, numbers), static_cast<T*>(out), nullptr));
}

template <typename T>
int run_backward(const void* const* inputs, const int64_t* numbers, const void* upstream,
                 void* const* outputs, void* workspace) {
  const EmissionGradients<T> out{static_cast<const T*>(upstream), static_cast<T*>(outputs[0]),
                                 static_cast<T*>(outputs[1]), static_cast<T*>(outputs[2])};
  return int(cuda::combine_emissions_backward(input<T>(inputs, numbers), out, workspace, nullptr));
}

}  // namespace

extern "C" int64_t emu_emissions_workspace(const void* const* inputs, const int64_t* numbers) {
  return cuda::combine_emissions_backward_workspace(input<float>(inputs, numbers));
}

extern "C" int emu_emissions(int wide, const void* const* inputs, const int64_t* numbers,
                             void* out) {
  return (wide ? run<double> : run<float>)(inputs, numbers, out);
}

extern "C" int emu_emissions_backward(int wide, const void* const* inputs, const int64_t* numbers,
                                      const void* upstream, void* const* outputs, void* workspace) {
  return (wide ? run_backward<double> : run_backward<float>)(inputs, numbers, upstream, outputs,
                                                             workspace);
}
