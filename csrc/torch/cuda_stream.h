// What the CUDA files of csrc/torch share: the device and stream of a call, device memory for the
// kernels, and the error of a failed launch. Only the stable ABI, and one symbol of libtorch_cuda.
#pragma once

#include <cuda_runtime.h>
#include <torch/csrc/stable/accelerator.h>

#include "torch/checks.h"

// In torch's header only where USE_CUDA is defined, which would pull in more than this.
extern "C" AOTITorchError aoti_torch_get_current_cuda_stream(int32_t device_index, void** stream);

namespace oneshot {

// Makes the device of `t` current for as long as it lives; work goes to torch's current stream
// there, so it is ordered like torch's own and captured into CUDA graphs.
class OnStreamOf {
 public:
  explicit OnStreamOf(const Tensor& t) : guard_(t.get_device_index()) {
    void* stream = nullptr;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(t.get_device_index(), &stream));
    stream_ = static_cast<cudaStream_t>(stream);
  }

  cudaStream_t get() const { return stream_; }

 private:
  torch::stable::accelerator::DeviceGuard guard_;
  cudaStream_t stream_ = nullptr;
};

inline void check_launch(cudaError_t status, const char* op) {
  if (status != cudaSuccess) {
    fail(op, " did not launch: ", cudaGetErrorName(status), " (", cudaGetErrorString(status), ")");
  }
}

// From torch's caching allocator, which hands memory on in stream order.
inline Tensor device_bytes(const Tensor& like, int64_t bytes) {
  return torch::stable::new_empty(like, {bytes}, ScalarType::Byte);
}

}  // namespace oneshot
