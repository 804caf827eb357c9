// What the tensor layers of all families share beside checks: pointers, dense copies, fresh
// outputs.
#pragma once

#include <optional>
#include <vector>

#include "torch/checks.h"
#include "torch/huge_pages.h"

namespace oneshot {

using OptionalTensor = std::optional<Tensor>;

template <typename T>
const T* data(const Tensor& t) {
  return static_cast<const T*>(t.const_data_ptr());
}
template <typename T>
const T* data(const OptionalTensor& t) {
  return t ? data<T>(*t) : nullptr;
}
template <typename T>
T* mutable_data(const Tensor& t) {
  return static_cast<T*>(t.mutable_data_ptr());
}
inline const void* pointer(const OptionalTensor& t) { return t ? t->const_data_ptr() : nullptr; }
// Of a tensor that is empty where it is not wanted.
inline void* pointer_if(bool wanted, const Tensor& t) {
  return wanted ? t.mutable_data_ptr() : nullptr;
}
inline const bool* mask_pointer(const OptionalTensor& mask) {
  return mask ? mask_pointer(*mask) : nullptr;
}

inline Tensor dense(const Tensor& t) { return torch::stable::contiguous(t); }
inline OptionalTensor dense(const OptionalTensor& t) {
  return t ? OptionalTensor(dense(*t)) : std::nullopt;
}

// The type that the kernels compute in, and of what they keep in full precision.
inline ScalarType real_type(const Tensor& t) {
  return t.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

// Calls body(T()) with the real type of `t`, and returns what it returns.
template <typename Body>
auto with_real_type(const Tensor& t, const Body& body) {
  return real_type(t) == ScalarType::Double ? body(double()) : body(float());
}

// An output, on the device of `like` and by default in its dtype. On the CPU a large one is backed
// by huge pages where the system has them.
inline Tensor fresh(const Tensor& like, const std::vector<int64_t>& sizes,
                    std::optional<ScalarType> dtype = std::nullopt) {
  Tensor t = torch::stable::new_empty(like, sizes, dtype);
  if (t.is_cpu()) {
    prefer_huge_pages(t.mutable_data_ptr(), t.numel() * int64_t(t.element_size()));
  }
  return t;
}
inline std::vector<int64_t> sizes_of(const Tensor& t) {
  return std::vector<int64_t>(t.sizes().begin(), t.sizes().end());
}
inline Tensor fresh_like(const Tensor& like) { return fresh(like, sizes_of(like)); }
inline Tensor nothing(const Tensor& like) { return fresh(like, {0}); }
inline Tensor fresh_if(bool wanted, const Tensor& like) {
  return wanted ? fresh_like(like) : nothing(like);
}

inline void check_float_or_double(On on, const Tensor& t, const char* name) {
  check_on(on, t, name);
  if (t.scalar_type() != ScalarType::Float && t.scalar_type() != ScalarType::Double) {
    fail(name, " must be float32 or float64, got dtype code ", int(t.scalar_type()));
  }
}

// On the device and in the dtype of `other`.
inline void check_like(On on, const Tensor& t, const char* name, const Tensor& other,
                       const char* other_name) {
  check_beside(on, t, name, other, other_name);
  if (t.scalar_type() != other.scalar_type()) {
    fail(name, " must have the dtype of ", other_name, ", got dtype code ", int(t.scalar_type()));
  }
}

inline void check_mask(On on, const OptionalTensor& mask, const Tensor& other,
                       const char* other_name) {
  if (!mask) return;
  check_beside(on, *mask, "mask", other, other_name);
  check_dtype(*mask, "mask", ScalarType::Bool, "bool");
  check_same_shape(*mask, "mask", other, other_name);
}

}  // namespace oneshot
