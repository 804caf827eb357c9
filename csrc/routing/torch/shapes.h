// How the tensors of the `routing` family become the shapes and pointers of its kernels, on either
// device.
#pragma once

#include <sstream>
#include <vector>

#include "routing/contract.h"
#include "torch/tensors.h"

namespace oneshot {

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
  return dense(t);
}

inline Inventory describe(const Tensor& inventory, bool transposed) {
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

inline OptionalTensor dense_base(On on, const Tensor& x, const OptionalTensor& base,
                                 int64_t d_out) {
  if (!base) return std::nullopt;
  return dense(on, *base, "base", x.scalar_type(), {x.size(0), x.size(1), d_out});
}

// Outputs of routed_lora.
struct LoraResults {
  Tensor y, shrunk;
  LoraResults(const Tensor& x, int64_t rank, int64_t d_out)
      : y(fresh(x, {x.size(0), x.size(1), d_out})),
        shrunk(fresh(x, {x.size(0), x.size(1), rank}, real_type(x))) {}
};

}  // namespace oneshot
