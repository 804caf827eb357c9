// torch ops of the `routing` family on CPU tensors (stable ABI only).
#include "cpu/routing.h"

#include <optional>
#include <tuple>
#include <vector>

#include "torch/checks.h"
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

// Weights, mixtures and their gradients: float32, float64 beside float64 tensors.
ScalarType real_type(const Tensor& t) {
  return t.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

// Dense, on the CPU, of this dtype and shape; -1 in `shape`: any size.
Tensor dense(const Tensor& t, const char* name, ScalarType dtype,
             const std::vector<int64_t>& shape) {
  check_cpu(t, name);
  check_dtype(t, name, dtype, dtype == ScalarType::Long ? "int64" : "of the dtype the op works in");
  bool fits = t.dim() == int64_t(shape.size());
  for (size_t d = 0; fits && d < shape.size(); ++d) {
    fits = shape[d] < 0 || t.size(int64_t(d)) == shape[d];
  }
  if (!fits) {
    std::ostringstream wanted;
    for (size_t d = 0; d < shape.size(); ++d) {
      wanted << (d == 0 ? "" : ", ");
      if (shape[d] < 0) {
        wanted << "any";
      } else {
        wanted << shape[d];
      }
    }
    fail(name, " must have the shape [", wanted.str(), "], got ", shape_text(t));
  }
  return torch::stable::contiguous(t);
}

// A large output: fresh memory costs more than computing what it holds.
Tensor fresh(const Tensor& like, const std::vector<int64_t>& sizes, ScalarType dtype) {
  Tensor out = torch::stable::new_empty(like, sizes, dtype);
  prefer_huge_pages(out.mutable_data_ptr(), out.numel() * int64_t(out.element_size()));
  return out;
}

Tensor nothing(const Tensor& like) {
  return torch::stable::new_empty(like, std::vector<int64_t>{0}, like.scalar_type());
}

// ---- mix_adapters

cpu::Inventory describe(const Tensor& inventory, bool transposed) {
  return {dtype_of(inventory, "inventory"),
          inventory.const_data_ptr(),
          inventory.size(0),
          inventory.size(1),
          inventory.size(2),
          inventory.size(3),
          transposed};
}

Tensor dense_inventory(const Tensor& inventory) {
  return dense(inventory, "inventory", inventory.scalar_type(), {-1, -1, -1, -1});
}

Tensor dense_weights(const Tensor& weights, const Tensor& inventory) {
  return dense(weights, "weights", real_type(inventory),
               {-1, inventory.size(0), inventory.size(1)});
}

Tensor mix_adapters(const Tensor& inventory, const Tensor& weights, bool transposed) {
  const Tensor skills = dense_inventory(inventory);
  const Tensor shares = dense_weights(weights, inventory);
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

std::tuple<Tensor, Tensor> mix_adapters_backward(const Tensor& grad, const Tensor& inventory,
                                                 const Tensor& weights, bool transposed,
                                                 bool need_inventory, bool need_weights) {
  const Tensor skills = dense_inventory(inventory);
  const Tensor shares = dense_weights(weights, inventory);
  const cpu::Inventory described = describe(skills, transposed);
  const Tensor grad_mixture = dense(grad, "grad", real_type(skills),
                                    {shares.size(0), described.rank(), described.length()});
  Tensor grad_inventory =
      need_inventory ? torch::stable::new_empty(skills, skills.sizes()) : nothing(skills);
  Tensor grad_weights =
      need_weights ? torch::stable::new_empty(shares, shares.sizes()) : nothing(shares);
  const cpu::MixBackward args{described,
                              shares.const_data_ptr(),
                              grad_mixture.const_data_ptr(),
                              need_inventory ? grad_inventory.mutable_data_ptr() : nullptr,
                              nullptr,
                              shares.size(0)};
  void* out = need_weights ? grad_weights.mutable_data_ptr() : nullptr;
  if (real_type(skills) == ScalarType::Double) {
    cpu::mix_backward(args, static_cast<double*>(out), TorchThreads{});
  } else {
    cpu::mix_backward(args, static_cast<float*>(out), TorchThreads{});
  }
  return {grad_inventory, grad_weights};
}

// ---- routed_lora: x [S, T, d_in]; one mixture for each of the S groups of T rows

struct Lora {
  Tensor x, a, b;
  cpu::LoraShape shape;
  cpu::RowGroups groups;
};

Lora describe(const Tensor& x, const Tensor& mixed_a, const Tensor& mixed_b, const Tensor& rows) {
  Lora lora{dense(x, "x", x.scalar_type(), {-1, -1, -1}),
            dense(mixed_a, "mixed_a", real_type(x), {-1, -1, x.size(2)}),
            mixed_b,
            {},
            {}};
  const int64_t mixtures = mixed_a.size(0), rank = mixed_a.size(1);
  lora.b = dense(mixed_b, "mixed_b", real_type(x), {mixtures, rank, -1});
  const Tensor mixture_of = dense(rows, "rows", ScalarType::Long, {x.size(0)});
  lora.shape = {dtype_of(x, "x"), mixtures, rank, x.size(2), mixed_b.size(2)};
  lora.groups = cpu::group_rows(static_cast<const int64_t*>(mixture_of.const_data_ptr()),
                                x.size(0), x.size(1), mixtures);
  return lora;
}

std::tuple<Tensor, Tensor> routed_lora(const Tensor& x, const Tensor& mixed_a,
                                       const Tensor& mixed_b, const Tensor& rows,
                                       const std::optional<Tensor>& base, double scaling) {
  const Lora lora = describe(x, mixed_a, mixed_b, rows);
  const std::vector<int64_t> outer{x.size(0), x.size(1)};
  std::optional<Tensor> addend;
  if (base) {
    addend = dense(*base, "base", x.scalar_type(), {outer[0], outer[1], lora.shape.d_out});
  }
  Tensor y = fresh(x, {outer[0], outer[1], lora.shape.d_out}, x.scalar_type());
  Tensor shrunk = fresh(x, {outer[0], outer[1], lora.shape.rank}, real_type(x));
  const cpu::LoraForward args{lora.shape,
                              lora.x.const_data_ptr(),
                              lora.a.const_data_ptr(),
                              lora.b.const_data_ptr(),
                              addend ? addend->const_data_ptr() : nullptr,
                              shrunk.mutable_data_ptr(),
                              y.mutable_data_ptr(),
                              scaling};
  TorchThreads{}(0, int64_t(lora.groups.blocks.size()), 1, [&](int64_t begin, int64_t end) {
    cpu::lora(args, lora.groups, begin, end);
  });
  return {y, shrunk};
}

std::tuple<Tensor, Tensor, Tensor> routed_lora_backward(
    const Tensor& grad, const Tensor& x, const Tensor& mixed_a, const Tensor& mixed_b,
    const Tensor& rows, const Tensor& shrunk, double scaling, bool need_x, bool need_a,
    bool need_b) {
  const Lora lora = describe(x, mixed_a, mixed_b, rows);
  const int64_t groups = x.size(0), repeat = x.size(1), rank = lora.shape.rank;
  const Tensor grad_y = dense(grad, "grad", x.scalar_type(), {groups, repeat, lora.shape.d_out});
  const Tensor saved = dense(shrunk, "shrunk", real_type(x), {groups, repeat, rank});
  Tensor grad_shrunk = torch::stable::new_empty(saved, saved.sizes());
  Tensor grad_x = need_x ? fresh(x, {groups, repeat, lora.shape.d_in}, x.scalar_type())
                         : nothing(x);
  Tensor grad_a = need_a ? torch::stable::new_empty(lora.a, lora.a.sizes()) : nothing(lora.a);
  Tensor grad_b = need_b ? torch::stable::new_empty(lora.b, lora.b.sizes()) : nothing(lora.b);
  cpu::lora_backward({lora.shape, grad_y.const_data_ptr(), lora.x.const_data_ptr(),
                      lora.a.const_data_ptr(), lora.b.const_data_ptr(), saved.const_data_ptr(),
                      grad_shrunk.mutable_data_ptr(),
                      need_x ? grad_x.mutable_data_ptr() : nullptr,
                      need_a ? grad_a.mutable_data_ptr() : nullptr,
                      need_b ? grad_b.mutable_data_ptr() : nullptr, scaling},
                     lora.groups, TorchThreads{});
  return {grad_x, grad_a, grad_b};
}

}  // namespace
}  // namespace oneshot

STABLE_TORCH_LIBRARY_IMPL(oneshot, CPU, m) {
  m.impl("mix_adapters", TORCH_BOX(&oneshot::mix_adapters));
  m.impl("mix_adapters_backward", TORCH_BOX(&oneshot::mix_adapters_backward));
  m.impl("routed_lora", TORCH_BOX(&oneshot::routed_lora));
  m.impl("routed_lora_backward", TORCH_BOX(&oneshot::routed_lora_backward));
}
