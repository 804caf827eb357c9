// C entry points of the `routing` launchers, for ctypes.
#include "routing/cuda/routing.cuh"

using namespace oneshot;

namespace {

// shape: heads, skills, p, q, mixtures.
Inventory inventory(int dtype, const void* data, const int64_t* shape, bool transposed) {
  return {DType(dtype), data, shape[0], shape[1], shape[2], shape[3], transposed};
}

// shape: groups, repeat, mixtures, rank, features in, features out.
cuda::RowMixtures rows(const int64_t* mixture_of, const int64_t* shape) {
  return {mixture_of, shape[0], shape[1], shape[2]};
}

LoraShape lora(int dtype, const int64_t* shape) {
  return {DType(dtype), shape[2], shape[3], shape[4], shape[5]};
}

}  // namespace

extern "C" int emu_mix(int dtype, const void* data, const int64_t* shape, bool transposed,
                       const void* weights, void* mixture) {
  return int(
      cuda::mix({inventory(dtype, data, shape, transposed), weights, mixture, shape[4]}, nullptr));
}

extern "C" int emu_mix_backward(int dtype, const void* data, const int64_t* shape, bool transposed,
                                const void* weights, const void* grad, void* grad_inventory,
                                void* grad_weights, bool add_weights) {
  return int(cuda::mix_backward({inventory(dtype, data, shape, transposed), weights, grad,
                                 grad_inventory, grad_weights, add_weights, shape[4]},
                                nullptr));
}

extern "C" bool emu_prefers_inventory(const int64_t* shape) {
  return cuda::prefers_inventory(rows(nullptr, shape));
}

extern "C" int64_t emu_lora_workspace(int dtype, const int64_t* shape) {
  return cuda::lora_workspace(lora(dtype, shape), rows(nullptr, shape));
}

extern "C" int emu_lora(int dtype, const int64_t* shape, const int64_t* mixture_of, const void* x,
                        const void* a, const void* b, const void* base, void* shrunk, void* y,
                        double scaling, void* workspace) {
  return int(cuda::lora({lora(dtype, shape), x, a, b, base, shrunk, y, scaling},
                        rows(mixture_of, shape), workspace, nullptr));
}

extern "C" int64_t emu_lora_backward_workspace(int dtype, const int64_t* shape, void* grad_a,
                                               void* grad_b) {
  LoraBackward args{};
  args.shape = lora(dtype, shape);
  args.grad_a = grad_a, args.grad_b = grad_b;
  return cuda::lora_backward_workspace(args, rows(nullptr, shape));
}

extern "C" int emu_lora_backward(int dtype, const int64_t* shape, const int64_t* mixture_of,
                                 const void* grad, const void* x, const void* a, const void* b,
                                 const void* shrunk, void* grad_shrunk, void* grad_x, void* grad_a,
                                 void* grad_b, double scaling, void* workspace) {
  return int(cuda::lora_backward(
      {lora(dtype, shape), grad, x, a, b, shrunk, grad_shrunk, grad_x, grad_a, grad_b, scaling},
      rows(mixture_of, shape), workspace, nullptr));
}

namespace {

// heads_and_skills: of both inventories. dtypes: of x, of lora_a, of lora_b.
cuda::InventoryLora inventories(const int* dtypes, const int64_t* shape,
                                const int64_t* heads_and_skills, const void* a, const void* b) {
  const int64_t heads = heads_and_skills[0], skills = heads_and_skills[1], rank = shape[3];
  const int64_t in[4] = {heads, skills, shape[4] / heads, rank};
  const int64_t out[4] = {heads, skills, rank, shape[5] / heads};
  cuda::InventoryLora args{};
  args.shape = lora(dtypes[0], shape);
  args.a = inventory(dtypes[1], a, in, true);
  args.b = inventory(dtypes[2], b, out, false);
  return args;
}

}  // namespace

extern "C" int64_t emu_inventory_lora_workspace(const int* dtypes, const int64_t* shape,
                                                const int64_t* heads_and_skills) {
  return cuda::inventory_lora_workspace(
      inventories(dtypes, shape, heads_and_skills, nullptr, nullptr), rows(nullptr, shape));
}

extern "C" int emu_inventory_lora(const int* dtypes, const int64_t* shape,
                                  const int64_t* heads_and_skills, const int64_t* mixture_of,
                                  const void* x, const void* a, const void* b, const void* weights,
                                  const void* base, void* shrunk, void* y, double scaling,
                                  void* workspace) {
  cuda::InventoryLora args = inventories(dtypes, shape, heads_and_skills, a, b);
  args.weights = weights, args.x = x, args.base = base;
  args.shrunk = shrunk, args.y = y, args.scaling = scaling;
  return int(cuda::inventory_lora(args, rows(mixture_of, shape), workspace, nullptr));
}
