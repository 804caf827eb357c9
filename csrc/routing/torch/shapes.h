// How the tensors of the `routing` family become the shapes and pointers of its kernels, on either
// device.
#pragma once

#include <vector>

#include "routing/contract.h"
#include "torch/checks.h"

namespace oneshot {

// Weights, mixtures and their gradients: float32, float64 beside float64 tensors.
inline ScalarType real_type(const Tensor& t) {
  return t.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

// Dense, on the device, of this dtype and shape; -1 in `shape`: any size.
inline Tensor dense(On on, const Tensor& t, const char* name, ScalarType dtype,
                    const std::vector<int64_t>& shape) {
  check_on(on, t, name);
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

inline Tensor nothing(const Tensor& like) {
  return torch::stable::new_empty(like, std::vector<int64_t>{0}, like.scalar_type());
}

inline cpu::Inventory describe(const Tensor& inventory, bool transposed) {
  return {dtype_of(inventory, "inventory"),
          inventory.const_data_ptr(),
          inventory.size(0),
          inventory.size(1),
          inventory.size(2),
          inventory.size(3),
          transposed};
}

inline Tensor dense_inventory(On on, const Tensor& inventory) {
  return dense(on, inventory, "inventory", inventory.scalar_type(), {-1, -1, -1, -1});
}

inline Tensor dense_weights(On on, const Tensor& weights, const Tensor& inventory) {
  return dense(on, weights, "weights", real_type(inventory),
               {-1, inventory.size(0), inventory.size(1)});
}

}  // namespace oneshot
