// torch ops of the `advantage` family on CUDA tensors (stable ABI only).
#include "advantage/cuda/advantage.cuh"

#include "advantage/torch/ops.h"
#include "torch/cuda_stream.h"

namespace oneshot {
namespace {

class Cuda {
 public:
  static constexpr On kOn = On::kCuda;
  explicit Cuda(const Tensor& first) : first_(first), stream_(first) {}

  // What can be said without reading the device; the kernels look at the rest.
  cuda::RowGroups groups(int64_t size, const OptionalTensor& ids, const OptionalTensor& sizes,
                         int64_t rows) const {
    if (!ids && !sizes && (size < 1 || rows % size != 0)) {
      fail("groups must be >= 1 and divide the ", rows, " rows, got ", size);
    }
    if (sizes && sizes->size(0) == 0 && rows > 0) {
      fail("group_sizes must sum to the number of rows ", rows, ", got no groups");
    }
    return {size, data<int64_t>(ids), data<int64_t>(sizes), sizes ? sizes->size(0) : 0};
  }

  template <typename T>
  void group_advantages(const TokenRows<T>& tokens, const int64_t* lengths,
                        const cuda::RowGroups& groups, const GroupRule& rule) const {
    const Tensor workspace = device_bytes(first_, cuda::group_advantages_workspace(tokens.rows));
    check_launch(cuda::group_advantages(tokens, lengths, groups, rule, workspace.mutable_data_ptr(),
                                        stream_.get()),
                 "group_advantages");
  }

  void check_offsets(const Tensor& offsets, int64_t tokens) const {
    if (offsets.size(0) < 1 || (offsets.size(0) == 1 && tokens > 0)) {
      fail("cu_seqlens must rise from 0 to ", tokens, " (the tokens)");
    }
  }

  template <typename T>
  void gae(const GaeArgs<T>& args, int64_t tokens) const {
    check_launch(cuda::gae(args, tokens, stream_.get()), "gae");
  }

  template <typename T>
  void whiten(const WhitenArgs<T>& args, double eps) const {
    const Tensor workspace = device_bytes(first_, cuda::whiten_workspace(args.count));
    check_launch(cuda::whiten(args, eps, workspace.mutable_data_ptr(), stream_.get()), "whiten");
  }

 private:
  const Tensor& first_;
  OnStreamOf stream_;
};

}  // namespace
}  // namespace oneshot

STABLE_TORCH_LIBRARY_IMPL(oneshot, CUDA, m) { oneshot::register_advantage<oneshot::Cuda>(m); }
