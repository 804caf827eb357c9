// torch ops of the `routing` family on CUDA tensors (stable ABI only).
#include "routing/cuda/routing.cuh"

#include <optional>
#include <tuple>
#include <vector>

#include "routing/torch/shapes.h"
#include "torch/cuda_stream.h"

namespace oneshot {
namespace {

Tensor empty(const Tensor& like, const std::vector<int64_t>& sizes, ScalarType dtype) {
  return torch::stable::new_empty(like, sizes, dtype);
}

// ---- mix_adapters

Tensor mix(const Tensor& inventory, const Tensor& weights, bool transposed, cudaStream_t stream) {
  const Tensor skills = dense_inventory(On::kCuda, inventory);
  const Tensor shares = dense_weights(On::kCuda, weights, inventory);
  check_cuda(shares, "weights", skills, "inventory");
  const cpu::Inventory described = describe(skills, transposed);
  Tensor mixture =
      empty(skills, {shares.size(0), described.rank(), described.length()}, real_type(skills));
  const cuda::MixForward args{described, shares.const_data_ptr(), mixture.mutable_data_ptr(),
                              shares.size(0)};
  check_launch(cuda::mix(args, stream), "mix_adapters");
  return mixture;
}

Tensor mix_adapters(const Tensor& inventory, const Tensor& weights, bool transposed) {
  check_on(On::kCuda, inventory, "inventory");
  const OnStreamOf stream(inventory);
  return mix(inventory, weights, transposed, stream.get());
}

// Returns the gradient of the inventory, if it is wanted; writes that of the weights, or adds to
// it, where there is a place.
Tensor mix_backward(const Tensor& grad, const Tensor& inventory, const Tensor& weights,
                    bool transposed, bool need_inventory, Tensor* grad_weights, bool add_weights,
                    cudaStream_t stream) {
  const Tensor skills = dense_inventory(On::kCuda, inventory);
  const Tensor shares = dense_weights(On::kCuda, weights, inventory);
  const cpu::Inventory described = describe(skills, transposed);
  const Tensor grad_mixture = dense(On::kCuda, grad, "grad", real_type(skills),
                                    {shares.size(0), described.rank(), described.length()});
  Tensor grad_inventory =
      need_inventory ? torch::stable::new_empty(skills, skills.sizes()) : nothing(skills);
  const cuda::MixBackward args{described,
                               shares.const_data_ptr(),
                               grad_mixture.const_data_ptr(),
                               need_inventory ? grad_inventory.mutable_data_ptr() : nullptr,
                               grad_weights ? grad_weights->mutable_data_ptr() : nullptr,
                               add_weights,
                               shares.size(0)};
  check_launch(cuda::mix_backward(args, stream), "mix_adapters_backward");
  return grad_inventory;
}

std::tuple<Tensor, Tensor> mix_adapters_backward(const Tensor& grad, const Tensor& inventory,
                                                 const Tensor& weights, bool transposed,
                                                 bool need_inventory, bool need_weights) {
  check_on(On::kCuda, inventory, "inventory");
  const OnStreamOf stream(inventory);
  Tensor grad_weights =
      need_weights ? torch::stable::new_empty(weights, weights.sizes()) : nothing(weights);
  Tensor grad_inventory = mix_backward(grad, inventory, weights, transposed, need_inventory,
                                       need_weights ? &grad_weights : nullptr, false, stream.get());
  return {grad_inventory, grad_weights};
}

// ---- routed_lora: x [S, T, d_in]; one mixture for each of the S groups of T rows

cuda::RowMixtures row_mixtures(const Tensor& x, const Tensor& rows, int64_t mixtures) {
  return {static_cast<const int64_t*>(rows.const_data_ptr()), x.size(0), x.size(1), mixtures};
}

Tensor dense_rows(const Tensor& x, const Tensor& rows) {
  check_cuda(rows, "rows", x, "x");
  return dense(On::kCuda, rows, "rows", ScalarType::Long, {x.size(0)});
}

struct Results {
  Tensor y, shrunk;
};

Results results(const Tensor& x, int64_t rank, int64_t d_out) {
  return {empty(x, {x.size(0), x.size(1), d_out}, x.scalar_type()),
          empty(x, {x.size(0), x.size(1), rank}, real_type(x))};
}

std::optional<Tensor> dense_base(const Tensor& x, const std::optional<Tensor>& base,
                                 int64_t d_out) {
  if (!base) return std::nullopt;
  return dense(On::kCuda, *base, "base", x.scalar_type(), {x.size(0), x.size(1), d_out});
}

const void* pointer(const std::optional<Tensor>& t) { return t ? t->const_data_ptr() : nullptr; }

// From the inventories, where no mixture need be made.
std::tuple<Tensor, Tensor> by_inventory(const Tensor& x, const Tensor& lora_a, const Tensor& lora_b,
                                        const Tensor& weights, const Tensor& rows,
                                        const std::optional<Tensor>& base, double scaling,
                                        cudaStream_t stream) {
  const Tensor skills_a = dense_inventory(On::kCuda, lora_a);
  const Tensor skills_b = dense_inventory(On::kCuda, lora_b);
  const Tensor shares = dense_weights(On::kCuda, weights, lora_a);
  const cpu::Inventory a = describe(skills_a, true), b = describe(skills_b, false);
  if (real_type(lora_a) != real_type(x) || real_type(lora_b) != real_type(x)) {
    fail("x, lora_a and lora_b must be all float64 or none");
  }
  if (a.length() != x.size(2) || b.heads != a.heads || b.skills != a.skills ||
      b.rank() != a.rank()) {
    fail("lora_a must be [heads, skills, ", x.size(2),
         " / heads, rank] and lora_b [heads, skills, rank, any], got ", shape_text(lora_a), " and ",
         shape_text(lora_b));
  }
  Results out = results(x, a.rank(), b.length());
  const std::optional<Tensor> addend = dense_base(x, base, b.length());
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
  const cuda::RowMixtures mixture_of = row_mixtures(x, rows, shares.size(0));
  const Tensor workspace = device_bytes(x, cuda::inventory_lora_workspace(args, mixture_of));
  check_launch(cuda::inventory_lora(args, mixture_of, workspace.mutable_data_ptr(), stream),
               "routed_lora");
  return {out.y, out.shrunk};
}

struct Lora {
  Tensor a, b;  // mixtures
  cpu::LoraShape shape;
};

// With weights, lora_a and lora_b are inventories; their mixtures live as long as the call.
Lora mixed(const Tensor& x, const Tensor& lora_a, const Tensor& lora_b,
           const std::optional<Tensor>& weights, cudaStream_t stream) {
  check_cuda(lora_a, "lora_a", x, "x");
  check_cuda(lora_b, "lora_b", x, "x");
  const Tensor mixed_a = weights ? mix(lora_a, *weights, true, stream) : lora_a;
  const Tensor mixed_b = weights ? mix(lora_b, *weights, false, stream) : lora_b;
  const Tensor a = dense(On::kCuda, mixed_a, "lora_a", real_type(x), {-1, -1, x.size(2)});
  const Tensor b = dense(On::kCuda, mixed_b, "lora_b", real_type(x), {a.size(0), a.size(1), -1});
  return {a, b, {dtype_of(x, "x"), a.size(0), a.size(1), x.size(2), b.size(2)}};
}

Tensor dense_x(const Tensor& x) { return dense(On::kCuda, x, "x", x.scalar_type(), {-1, -1, -1}); }

std::tuple<Tensor, Tensor> routed_lora(const Tensor& x, const Tensor& lora_a, const Tensor& lora_b,
                                       const std::optional<Tensor>& weights, const Tensor& rows,
                                       const std::optional<Tensor>& base, double scaling) {
  const Tensor tokens = dense_x(x), mixture_of = dense_rows(x, rows);
  const OnStreamOf stream(x);
  if (weights) {
    check_cuda(*weights, "weights", x, "x");
    if (cuda::prefers_inventory(row_mixtures(x, mixture_of, weights->size(0)))) {
      check_cuda(lora_a, "lora_a", x, "x");
      check_cuda(lora_b, "lora_b", x, "x");
      return by_inventory(tokens, lora_a, lora_b, *weights, mixture_of, base, scaling,
                          stream.get());
    }
  }
  const Lora lora = mixed(tokens, lora_a, lora_b, weights, stream.get());
  Results out = results(x, lora.shape.rank, lora.shape.d_out);
  const std::optional<Tensor> addend = dense_base(x, base, lora.shape.d_out);
  const cuda::LoraForward args{lora.shape,
                               tokens.const_data_ptr(),
                               lora.a.const_data_ptr(),
                               lora.b.const_data_ptr(),
                               pointer(addend),
                               out.shrunk.mutable_data_ptr(),
                               out.y.mutable_data_ptr(),
                               scaling};
  const cuda::RowMixtures described = row_mixtures(x, mixture_of, lora.shape.mixtures);
  const Tensor workspace = device_bytes(x, cuda::lora_workspace(lora.shape, described));
  check_launch(cuda::lora(args, described, workspace.mutable_data_ptr(), stream.get()),
               "routed_lora");
  return {out.y, out.shrunk};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> routed_lora_backward(
    const Tensor& grad, const Tensor& x, const Tensor& lora_a, const Tensor& lora_b,
    const std::optional<Tensor>& weights, const Tensor& rows, const Tensor& shrunk, double scaling,
    bool need_x, bool need_a, bool need_b, bool need_weights) {
  const Tensor tokens = dense_x(x), mixture_of = dense_rows(x, rows);
  const OnStreamOf stream(x);
  const Lora lora = mixed(tokens, lora_a, lora_b, weights, stream.get());
  const int64_t groups = x.size(0), repeat = x.size(1);
  const Tensor grad_y =
      dense(On::kCuda, grad, "grad", x.scalar_type(), {groups, repeat, lora.shape.d_out});
  const Tensor saved =
      dense(On::kCuda, shrunk, "shrunk", real_type(x), {groups, repeat, lora.shape.rank});
  Tensor grad_shrunk = torch::stable::new_empty(saved, saved.sizes());
  const bool need_mixed_a = need_a || need_weights, need_mixed_b = need_b || need_weights;
  Tensor grad_x = need_x ? torch::stable::new_empty(tokens, tokens.sizes()) : nothing(x);
  Tensor grad_a = need_mixed_a ? torch::stable::new_empty(lora.a, lora.a.sizes()) : nothing(lora.a);
  Tensor grad_b = need_mixed_b ? torch::stable::new_empty(lora.b, lora.b.sizes()) : nothing(lora.b);
  const cuda::LoraBackward args{lora.shape,
                                grad_y.const_data_ptr(),
                                tokens.const_data_ptr(),
                                lora.a.const_data_ptr(),
                                lora.b.const_data_ptr(),
                                saved.const_data_ptr(),
                                grad_shrunk.mutable_data_ptr(),
                                need_x ? grad_x.mutable_data_ptr() : nullptr,
                                need_mixed_a ? grad_a.mutable_data_ptr() : nullptr,
                                need_mixed_b ? grad_b.mutable_data_ptr() : nullptr,
                                scaling};
  const cuda::RowMixtures described = row_mixtures(x, mixture_of, lora.shape.mixtures);
  const Tensor workspace = device_bytes(x, cuda::lora_backward_workspace(args, described));
  check_launch(cuda::lora_backward(args, described, workspace.mutable_data_ptr(), stream.get()),
               "routed_lora_backward");
  if (!weights) return {grad_x, grad_a, grad_b, nothing(lora.a)};
  Tensor grad_weights =
      need_weights ? torch::stable::new_empty(*weights, weights->sizes()) : nothing(*weights);
  Tensor* sums = need_weights ? &grad_weights : nullptr;
  Tensor grad_lora_a =
      need_mixed_a ? mix_backward(grad_a, lora_a, *weights, true, need_a, sums, false, stream.get())
                   : nothing(lora_a);
  Tensor grad_lora_b =
      need_mixed_b ? mix_backward(grad_b, lora_b, *weights, false, need_b, sums, true, stream.get())
                   : nothing(lora_b);
  return {grad_x, grad_lora_a, grad_lora_b, grad_weights};
}

}  // namespace
}  // namespace oneshot

STABLE_TORCH_LIBRARY_IMPL(oneshot, CUDA, m) {
  m.impl("mix_adapters", TORCH_BOX(&oneshot::mix_adapters));
  m.impl("mix_adapters_backward", TORCH_BOX(&oneshot::mix_adapters_backward));
  m.impl("routed_lora", TORCH_BOX(&oneshot::routed_lora));
  m.impl("routed_lora_backward", TORCH_BOX(&oneshot::routed_lora_backward));
}
