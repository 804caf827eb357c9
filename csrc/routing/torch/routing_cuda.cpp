// torch ops of the `routing` family on CUDA tensors (stable ABI only).
#include "routing/cuda/routing.cuh"

#include "routing/torch/ops.h"
#include "torch/cuda_stream.h"

namespace oneshot {
namespace {

class Cuda {
 public:
  static constexpr On kOn = On::kCuda;
  explicit Cuda(const Tensor& first) : first_(first), stream_(first) {}

  void mix(const MixForward& args) const {
    check_launch(cuda::mix(args, stream_.get()), "mix_adapters");
  }

  void mix_backward(const MixBackward& args) const {
    check_launch(cuda::mix_backward(args, stream_.get()), "mix_adapters_backward");
  }

  cuda::RowMixtures rows(const Tensor& x, const Tensor& mixture_of, int64_t mixtures) const {
    return {data<int64_t>(mixture_of), x.size(0), x.size(1), mixtures};
  }

  void lora(const LoraForward& args, const cuda::RowMixtures& rows) const {
    const Tensor workspace = device_bytes(first_, cuda::lora_workspace(args.shape, rows));
    check_launch(cuda::lora(args, rows, workspace.mutable_data_ptr(), stream_.get()),
                 "routed_lora");
  }

  void lora_backward(const LoraBackward& args, const cuda::RowMixtures& rows) const {
    const Tensor workspace = device_bytes(first_, cuda::lora_backward_workspace(args, rows));
    check_launch(cuda::lora_backward(args, rows, workspace.mutable_data_ptr(), stream_.get()),
                 "routed_lora_backward");
  }

  bool prefers_inventory(const Tensor& x, const Tensor& mixture_of, const Tensor& weights) const {
    return cuda::prefers_inventory(rows(x, mixture_of, weights.size(0)));
  }

  // From the inventories, where no mixture need be made.
  std::tuple<Tensor, Tensor> inventory_lora(const Tensor& x, const Tensor& lora_a,
                                            const Tensor& lora_b, const Tensor& weights,
                                            const Tensor& mixture_of, const OptionalTensor& base,
                                            double scaling) const {
    const Tensor skills_a = dense_inventory(kOn, lora_a), skills_b = dense_inventory(kOn, lora_b);
    const Tensor shares = dense_weights(kOn, weights, lora_a);
    const Inventory a = describe(skills_a, true), b = describe(skills_b, false);
    if (real_type(lora_a) != real_type(x) || real_type(lora_b) != real_type(x)) {
      fail("x, lora_a and lora_b must be all float64 or none");
    }
    if (a.length() != x.size(2) || b.heads != a.heads || b.skills != a.skills ||
        b.rank() != a.rank()) {
      fail("lora_a must be [heads, skills, ", x.size(2),
           " / heads, rank] and lora_b [heads, skills, rank, any], got ", shape_text(lora_a),
           " and ", shape_text(lora_b));
    }
    const LoraResults out(x, a.rank(), b.length());
    const OptionalTensor addend = dense_base(kOn, x, base, b.length());
    const cuda::InventoryLora args{
        {dtype_of(x, "x"), shares.size(0), a.rank(), x.size(2), b.length()},
        a,
        b,
        shares.const_data_ptr(),
        x.const_data_ptr(),
        pointer(addend),
        out.shrunk.mutable_data_ptr(),
        out.y.mutable_data_ptr(),
        scaling};
    const cuda::RowMixtures mixtures = rows(x, mixture_of, shares.size(0));
    const Tensor workspace = device_bytes(x, cuda::inventory_lora_workspace(args, mixtures));
    check_launch(cuda::inventory_lora(args, mixtures, workspace.mutable_data_ptr(), stream_.get()),
                 "routed_lora");
    return {out.y, out.shrunk};
  }

 private:
  const Tensor& first_;
  OnStreamOf stream_;
};

}  // namespace
}  // namespace oneshot

STABLE_TORCH_LIBRARY_IMPL(oneshot, CUDA, m) { oneshot::register_routing<oneshot::Cuda>(m); }
