// torch ops of the `routing` family on CPU tensors (stable ABI only).
#include "routing/contract.h"

#include <cstring>
#include <optional>
#include <tuple>
#include <vector>

#include "routing/torch/shapes.h"
#include "torch/huge_pages.h"

namespace oneshot {
namespace {

// Runs a driver's ranges on torch's threads.
struct TorchThreads {
  template <typename Body>
  void operator()(int64_t begin, int64_t end, int64_t grain, const Body& body) const {
    torch::stable::parallel_for(begin, end, grain, body);
  }
};

// A large output: fresh memory costs more than computing what it holds.
Tensor fresh(const Tensor& like, const std::vector<int64_t>& sizes, ScalarType dtype) {
  Tensor out = torch::stable::new_empty(like, sizes, dtype);
  prefer_huge_pages(out.mutable_data_ptr(), out.numel() * int64_t(out.element_size()));
  return out;
}

// ---- mix_adapters

Tensor mix_adapters(const Tensor& inventory, const Tensor& weights, bool transposed) {
  const Tensor skills = dense_inventory(On::kCpu, inventory);
  const Tensor shares = dense_weights(On::kCpu, weights, inventory);
  const cpu::Inventory described = describe(skills, transposed);
  Tensor mixture = torch::stable::new_empty(
      skills, std::vector<int64_t>{shares.size(0), described.rank(), described.length()},
      real_type(skills));
  const cpu::MixForward args{described, shares.const_data_ptr(), mixture.mutable_data_ptr(),
                             shares.size(0)};
  TorchThreads{}(0, cpu::mix_items(described), 4,
                 [&](int64_t begin, int64_t end) { cpu::mix(args, begin, end); });
  return mixture;
}

// Adds to grad_weights, if it is wanted; returns the gradient of the inventory, if that is.
Tensor mix_backward(const Tensor& grad, const Tensor& inventory, const Tensor& weights,
                    bool transposed, bool need_inventory, Tensor* grad_weights) {
  const Tensor skills = dense_inventory(On::kCpu, inventory);
  const Tensor shares = dense_weights(On::kCpu, weights, inventory);
  const cpu::Inventory described = describe(skills, transposed);
  const Tensor grad_mixture = dense(On::kCpu, grad, "grad", real_type(skills),
                                    {shares.size(0), described.rank(), described.length()});
  Tensor grad_inventory =
      need_inventory ? torch::stable::new_empty(skills, skills.sizes()) : nothing(skills);
  const cpu::MixBackward args{described,
                              shares.const_data_ptr(),
                              grad_mixture.const_data_ptr(),
                              need_inventory ? grad_inventory.mutable_data_ptr() : nullptr,
                              nullptr,
                              shares.size(0)};
  void* sums = grad_weights ? grad_weights->mutable_data_ptr() : nullptr;
  if (real_type(skills) == ScalarType::Double) {
    cpu::mix_backward(args, static_cast<double*>(sums), TorchThreads{});
  } else {
    cpu::mix_backward(args, static_cast<float*>(sums), TorchThreads{});
  }
  return grad_inventory;
}

// [mixtures, heads, skills], all 0; or empty.
Tensor zero_weights(const Tensor& weights, bool needed) {
  if (!needed) return nothing(weights);
  Tensor zeros = torch::stable::new_empty(weights, weights.sizes());
  std::memset(zeros.mutable_data_ptr(), 0, size_t(zeros.numel()) * zeros.element_size());
  return zeros;
}

std::tuple<Tensor, Tensor> mix_adapters_backward(const Tensor& grad, const Tensor& inventory,
                                                 const Tensor& weights, bool transposed,
                                                 bool need_inventory, bool need_weights) {
  Tensor grad_weights = zero_weights(weights, need_weights);
  Tensor grad_inventory = mix_backward(grad, inventory, weights, transposed, need_inventory,
                                       need_weights ? &grad_weights : nullptr);
  return {grad_inventory, grad_weights};
}

// ---- routed_lora: x [S, T, d_in]; one mixture for each of the S groups of T rows. With weights,
// lora_a and lora_b are inventories; their mixtures live as long as the call, backward makes them
// again: they cost far less time than memory.

struct Lora {
  Tensor x, a, b;  // mixtures
  cpu::LoraShape shape;
  cpu::RowGroups groups;
};

Lora describe(const Tensor& x, const Tensor& lora_a, const Tensor& lora_b,
              const std::optional<Tensor>& weights, const Tensor& rows) {
  const Tensor dense_x = dense(On::kCpu, x, "x", x.scalar_type(), {-1, -1, -1});
  const Tensor mixed_a = weights ? mix_adapters(lora_a, *weights, true) : lora_a;
  const Tensor mixed_b = weights ? mix_adapters(lora_b, *weights, false) : lora_b;
  const Tensor a = dense(On::kCpu, mixed_a, "lora_a", real_type(x), {-1, -1, x.size(2)});
  const int64_t mixtures = a.size(0), rank = a.size(1);
  const Tensor b = dense(On::kCpu, mixed_b, "lora_b", real_type(x), {mixtures, rank, -1});
  const Tensor mixture_of = dense(On::kCpu, rows, "rows", ScalarType::Long, {x.size(0)});
  return {dense_x, a, b, cpu::LoraShape{dtype_of(x, "x"), mixtures, rank, x.size(2), b.size(2)},
          cpu::group_rows(static_cast<const int64_t*>(mixture_of.const_data_ptr()), x.size(0),
                          x.size(1), mixtures)};
}

std::tuple<Tensor, Tensor> routed_lora(const Tensor& x, const Tensor& lora_a, const Tensor& lora_b,
                                       const std::optional<Tensor>& weights, const Tensor& rows,
                                       const std::optional<Tensor>& base, double scaling) {
  const Lora lora = describe(x, lora_a, lora_b, weights, rows);
  const int64_t groups = x.size(0), repeat = x.size(1);
  std::optional<Tensor> addend;
  if (base)
    addend = dense(On::kCpu, *base, "base", x.scalar_type(), {groups, repeat, lora.shape.d_out});
  Tensor y = fresh(x, {groups, repeat, lora.shape.d_out}, x.scalar_type());
  Tensor shrunk = fresh(x, {groups, repeat, lora.shape.rank}, real_type(x));
  const cpu::LoraForward args{lora.shape,
                              lora.x.const_data_ptr(),
                              lora.a.const_data_ptr(),
                              lora.b.const_data_ptr(),
                              addend ? addend->const_data_ptr() : nullptr,
                              shrunk.mutable_data_ptr(),
                              y.mutable_data_ptr(),
                              scaling};
  TorchThreads{}(0, int64_t(lora.groups.blocks.size()), 1,
                 [&](int64_t begin, int64_t end) { cpu::lora(args, lora.groups, begin, end); });
  return {y, shrunk};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> routed_lora_backward(
    const Tensor& grad, const Tensor& x, const Tensor& lora_a, const Tensor& lora_b,
    const std::optional<Tensor>& weights, const Tensor& rows, const Tensor& shrunk, double scaling,
    bool need_x, bool need_a, bool need_b, bool need_weights) {
  const Lora lora = describe(x, lora_a, lora_b, weights, rows);
  const int64_t groups = x.size(0), repeat = x.size(1);
  const Tensor grad_y =
      dense(On::kCpu, grad, "grad", x.scalar_type(), {groups, repeat, lora.shape.d_out});
  const Tensor saved =
      dense(On::kCpu, shrunk, "shrunk", real_type(x), {groups, repeat, lora.shape.rank});
  Tensor grad_shrunk = torch::stable::new_empty(saved, saved.sizes());
  const bool need_mixed_a = need_a || need_weights, need_mixed_b = need_b || need_weights;
  Tensor grad_x =
      need_x ? fresh(x, {groups, repeat, lora.shape.d_in}, x.scalar_type()) : nothing(x);
  Tensor grad_a = need_mixed_a ? torch::stable::new_empty(lora.a, lora.a.sizes()) : nothing(lora.a);
  Tensor grad_b = need_mixed_b ? torch::stable::new_empty(lora.b, lora.b.sizes()) : nothing(lora.b);
  const cpu::LoraBackward args{lora.shape,
                               grad_y.const_data_ptr(),
                               lora.x.const_data_ptr(),
                               lora.a.const_data_ptr(),
                               lora.b.const_data_ptr(),
                               saved.const_data_ptr(),
                               grad_shrunk.mutable_data_ptr(),
                               need_x ? grad_x.mutable_data_ptr() : nullptr,
                               need_mixed_a ? grad_a.mutable_data_ptr() : nullptr,
                               need_mixed_b ? grad_b.mutable_data_ptr() : nullptr,
                               scaling};
  cpu::lora_backward(args, lora.groups, int64_t(torch::stable::get_num_threads()), TorchThreads{});
  if (!weights) return {grad_x, grad_a, grad_b, nothing(lora.a)};
  Tensor grad_weights = zero_weights(*weights, need_weights);
  Tensor* sums = need_weights ? &grad_weights : nullptr;
  Tensor grad_lora_a =
      need_mixed_a ? mix_backward(grad_a, lora_a, *weights, true, need_a, sums) : nothing(lora_a);
  Tensor grad_lora_b =
      need_mixed_b ? mix_backward(grad_b, lora_b, *weights, false, need_b, sums) : nothing(lora_b);
  return {grad_x, grad_lora_a, grad_lora_b, grad_weights};
}

}  // namespace
}  // namespace oneshot

STABLE_TORCH_LIBRARY_IMPL(oneshot, CPU, m) {
  m.impl("mix_adapters", TORCH_BOX(&oneshot::mix_adapters));
  m.impl("mix_adapters_backward", TORCH_BOX(&oneshot::mix_adapters_backward));
  m.impl("routed_lora", TORCH_BOX(&oneshot::routed_lora));
  m.impl("routed_lora_backward", TORCH_BOX(&oneshot::routed_lora_backward));
}
