// torch ops of the `routing` family, one body for both devices. `Device` runs the kernels of a
// call: routing.cpp has the one of the CPU, routing_cuda.cpp the one of a GPU.
#pragma once

#include <optional>
#include <tuple>

#include "routing/torch/shapes.h"

namespace oneshot {

template <typename Device>
struct RoutingOps {
  // ---- mix_adapters

  static Tensor mix_adapters(const Tensor& inventory, const Tensor& weights, bool transposed) {
    check_on(Device::kOn, inventory, "inventory");
    return mix(Device(inventory), inventory, weights, transposed);
  }

  static std::tuple<Tensor, Tensor> mix_adapters_backward(const Tensor& grad,
                                                          const Tensor& inventory,
                                                          const Tensor& weights, bool transposed,
                                                          bool need_inventory, bool need_weights) {
    check_on(Device::kOn, inventory, "inventory");
    const Device device(inventory);
    const Tensor grad_weights = fresh_if(need_weights, weights);
    const Tensor grad_inventory =
        mix_backward(device, grad, inventory, weights, transposed, need_inventory,
                     pointer_if(need_weights, grad_weights), false);
    return {grad_inventory, grad_weights};
  }

  // ---- routed_lora: x [S, T, d_in]; one mixture for each of the S groups of T rows. With weights,
  // lora_a and lora_b are inventories; their mixtures live as long as the call, backward makes them
  // again: they cost far less time than memory.

  static std::tuple<Tensor, Tensor> routed_lora(const Tensor& x, const Tensor& lora_a,
                                                const Tensor& lora_b, const OptionalTensor& weights,
                                                const Tensor& rows, const OptionalTensor& base,
                                                double scaling) {
    const Tensor tokens = dense_x(x), mixture_of = dense_rows(x, rows);
    const Device device(x);
    if (weights) {
      check_beside(Device::kOn, *weights, "weights", x, "x");
      check_beside(Device::kOn, lora_a, "lora_a", x, "x");
      check_beside(Device::kOn, lora_b, "lora_b", x, "x");
      if (device.prefers_inventory(tokens, mixture_of, *weights)) {
        return device.inventory_lora(tokens, lora_a, lora_b, *weights, mixture_of, base, scaling);
      }
    }
    const Lora lora = mixed(device, tokens, lora_a, lora_b, weights);
    const LoraResults out(x, lora.shape.rank, lora.shape.d_out);
    const OptionalTensor addend = dense_base(Device::kOn, x, base, lora.shape.d_out);
    const LoraForward args{lora.shape,
                           tokens.const_data_ptr(),
                           lora.a.const_data_ptr(),
                           lora.b.const_data_ptr(),
                           pointer(addend),
                           out.shrunk.mutable_data_ptr(),
                           out.y.mutable_data_ptr(),
                           scaling};
    device.lora(args, device.rows(tokens, mixture_of, lora.shape.mixtures));
    return {out.y, out.shrunk};
  }

  static std::tuple<Tensor, Tensor, Tensor, Tensor> routed_lora_backward(
      const Tensor& grad, const Tensor& x, const Tensor& lora_a, const Tensor& lora_b,
      const OptionalTensor& weights, const Tensor& rows, const Tensor& shrunk, double scaling,
      bool need_x, bool need_a, bool need_b, bool need_weights) {
    const Tensor tokens = dense_x(x), mixture_of = dense_rows(x, rows);
    const Device device(x);
    const Lora lora = mixed(device, tokens, lora_a, lora_b, weights);
    const int64_t groups = x.size(0), repeat = x.size(1);
    const Tensor grad_y =
        dense(Device::kOn, grad, "grad", x.scalar_type(), {groups, repeat, lora.shape.d_out});
    const Tensor saved =
        dense(Device::kOn, shrunk, "shrunk", real_type(x), {groups, repeat, lora.shape.rank});
    const Tensor grad_shrunk = fresh_like(saved);
    const bool need_mixed_a = need_a || need_weights, need_mixed_b = need_b || need_weights;
    const Tensor grad_x = fresh_if(need_x, tokens);
    const Tensor grad_a = fresh_if(need_mixed_a, lora.a);
    const Tensor grad_b = fresh_if(need_mixed_b, lora.b);
    const LoraBackward args{lora.shape,
                            grad_y.const_data_ptr(),
                            tokens.const_data_ptr(),
                            lora.a.const_data_ptr(),
                            lora.b.const_data_ptr(),
                            saved.const_data_ptr(),
                            grad_shrunk.mutable_data_ptr(),
                            pointer_if(need_x, grad_x),
                            pointer_if(need_mixed_a, grad_a),
                            pointer_if(need_mixed_b, grad_b),
                            scaling};
    device.lora_backward(args, device.rows(tokens, mixture_of, lora.shape.mixtures));
    if (!weights) return {grad_x, grad_a, grad_b, nothing(lora.a)};
    const Tensor grad_weights = fresh_if(need_weights, *weights);
    void* sums = pointer_if(need_weights, grad_weights);
    const Tensor grad_lora_a =
        need_mixed_a ? mix_backward(device, grad_a, lora_a, *weights, true, need_a, sums, false)
                     : nothing(lora_a);
    const Tensor grad_lora_b =
        need_mixed_b ? mix_backward(device, grad_b, lora_b, *weights, false, need_b, sums, true)
                     : nothing(lora_b);
    return {grad_x, grad_lora_a, grad_lora_b, grad_weights};
  }

 private:
  struct Lora {
    Tensor a, b;  // mixtures
    LoraShape shape;
  };

  static Tensor mix(const Device& device, const Tensor& inventory, const Tensor& weights,
                    bool transposed) {
    const Tensor skills = dense_inventory(Device::kOn, inventory);
    const Tensor shares = dense_weights(Device::kOn, weights, inventory);
    const Inventory described = describe(skills, transposed);
    const Tensor mixture =
        fresh(skills, {shares.size(0), described.rank(), described.length()}, real_type(skills));
    device.mix({described, shares.const_data_ptr(), mixture.mutable_data_ptr(), shares.size(0)});
    return mixture;
  }

  // Returns the gradient of the inventory, if it is wanted; writes that of the weights, or adds to
  // it, where there is a place.
  static Tensor mix_backward(const Device& device, const Tensor& grad, const Tensor& inventory,
                             const Tensor& weights, bool transposed, bool need_inventory,
                             void* grad_weights, bool add_weights) {
    const Tensor skills = dense_inventory(Device::kOn, inventory);
    const Tensor shares = dense_weights(Device::kOn, weights, inventory);
    const Inventory described = describe(skills, transposed);
    const Tensor grad_mixture = dense(Device::kOn, grad, "grad", real_type(skills),
                                      {shares.size(0), described.rank(), described.length()});
    const Tensor grad_inventory = fresh_if(need_inventory, skills);
    device.mix_backward({described, shares.const_data_ptr(), grad_mixture.const_data_ptr(),
                         pointer_if(need_inventory, grad_inventory), grad_weights, add_weights,
                         shares.size(0)});
    return grad_inventory;
  }

  static Lora mixed(const Device& device, const Tensor& x, const Tensor& lora_a,
                    const Tensor& lora_b, const OptionalTensor& weights) {
    check_beside(Device::kOn, lora_a, "lora_a", x, "x");
    check_beside(Device::kOn, lora_b, "lora_b", x, "x");
    const Tensor mixed_a = weights ? mix(device, lora_a, *weights, true) : lora_a;
    const Tensor mixed_b = weights ? mix(device, lora_b, *weights, false) : lora_b;
    const Tensor a = dense(Device::kOn, mixed_a, "lora_a", real_type(x), {-1, -1, x.size(2)});
    const Tensor b =
        dense(Device::kOn, mixed_b, "lora_b", real_type(x), {a.size(0), a.size(1), -1});
    return {a, b, {dtype_of(x, "x"), a.size(0), a.size(1), x.size(2), b.size(2)}};
  }

  static Tensor dense_x(const Tensor& x) {
    return dense(Device::kOn, x, "x", x.scalar_type(), {-1, -1, -1});
  }

  static Tensor dense_rows(const Tensor& x, const Tensor& rows) {
    check_beside(Device::kOn, rows, "rows", x, "x");
    return dense(Device::kOn, rows, "rows", ScalarType::Long, {x.size(0)});
  }
};

template <typename Device, typename Library>
void register_routing(Library& m) {
  m.impl("mix_adapters", TORCH_BOX(&RoutingOps<Device>::mix_adapters));
  m.impl("mix_adapters_backward", TORCH_BOX(&RoutingOps<Device>::mix_adapters_backward));
  m.impl("routed_lora", TORCH_BOX(&RoutingOps<Device>::routed_lora));
  m.impl("routed_lora_backward", TORCH_BOX(&RoutingOps<Device>::routed_lora_backward));
}

}  // namespace oneshot
