// torch ops that combine label sources into emissions on CUDA tensors (stable ABI only).
#include "hmm/cuda/hmm.cuh"
#include "hmm/torch/emissions.h"
#include "torch/cuda_stream.h"

namespace oneshot {
namespace {

class Cuda {
 public:
  static constexpr On kOn = On::kCuda;
  explicit Cuda(const Tensor& log_emissions)
      : log_emissions_(log_emissions), stream_(log_emissions) {}

  template <typename T>
  void combine(const EmissionInput<T>& in, T* out) const {
    check_launch(cuda::combine_emissions(in, out, stream_.get()), "combine_emissions");
  }
  template <typename T>
  void combine_backward(const EmissionInput<T>& in, const EmissionGradients<T>& out) const {
    const Tensor workspace =
        device_bytes(log_emissions_, cuda::combine_emissions_backward_workspace(in));
    check_launch(
        cuda::combine_emissions_backward(in, out, workspace.mutable_data_ptr(), stream_.get()),
        "combine_emissions_backward");
  }

 private:
  const Tensor& log_emissions_;
  OnStreamOf stream_;
};

}  // namespace
}  // namespace oneshot

STABLE_TORCH_LIBRARY_IMPL(oneshot, CUDA, m) { oneshot::register_emissions<oneshot::Cuda>(m); }
