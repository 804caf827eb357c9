// torch ops of the `hmm` family on CUDA tensors (stable ABI only).
#include "hmm/cuda/hmm.cuh"

#include "hmm/torch/ops.h"
#include "torch/cuda_stream.h"

namespace oneshot {
namespace {

class Cuda {
 public:
  static constexpr On kOn = On::kCuda;
  explicit Cuda(const Tensor& log_emit) : log_emit_(log_emit), stream_(log_emit) {}

  template <typename T>
  void posteriors(const HmmInput<T>& in, const HmmPosteriors<T>& out) const {
    const Tensor workspace = device_bytes(log_emit_, cuda::hmm_posteriors_workspace(in, out));
    check_launch(cuda::hmm_posteriors(in, out, workspace.mutable_data_ptr(), stream_.get()),
                 "hmm_posteriors");
  }
  template <typename T>
  void posteriors_backward(const HmmInput<T>& in, const HmmUpstream<T>& up,
                           const HmmGradients<T>& out) const {
    const Tensor workspace =
        device_bytes(log_emit_, cuda::hmm_posteriors_backward_workspace(in, out));
    check_launch(
        cuda::hmm_posteriors_backward(in, up, out, workspace.mutable_data_ptr(), stream_.get()),
        "hmm_posteriors_backward");
  }
  template <typename T>
  void viterbi(const HmmInput<T>& in, int64_t* path, T* score) const {
    const Tensor workspace = device_bytes(log_emit_, cuda::hmm_viterbi_workspace(in));
    check_launch(cuda::hmm_viterbi(in, path, score, workspace.mutable_data_ptr(), stream_.get()),
                 "hmm_viterbi");
  }
  template <typename T>
  void sample(const HmmInput<T>& in, const HmmSampling& how, int64_t* paths) const {
    const Tensor workspace = device_bytes(log_emit_, cuda::hmm_sample_workspace(in));
    check_launch(cuda::hmm_sample(in, how, paths, workspace.mutable_data_ptr(), stream_.get()),
                 "hmm_sample");
  }

 private:
  const Tensor& log_emit_;
  OnStreamOf stream_;
};

}  // namespace
}  // namespace oneshot

STABLE_TORCH_LIBRARY_IMPL(oneshot, CUDA, m) { oneshot::register_hmm<oneshot::Cuda>(m); }
