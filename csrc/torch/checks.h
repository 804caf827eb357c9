// What every file in csrc/torch shares: tensor checks whose message names the argument, what was
// expected and what came. Python checks first (oneshot/ops); these hold for direct callers.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <sstream>
#include <stdexcept>
#include <string>

#include "common/dtype.h"

namespace oneshot {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

template <typename... Parts>
[[noreturn]] void fail(const Parts&... parts) {
  std::ostringstream text;
  text << "oneshot: ";
  ((text << parts), ...);
  throw std::runtime_error(text.str());
}

inline std::string shape_text(const Tensor& t) {
  std::ostringstream text;
  text << "[";
  for (int64_t d = 0; d < t.dim(); ++d) text << (d == 0 ? "" : ", ") << t.size(d);
  text << "]";
  return text.str();
}

inline bool same_shape(const Tensor& a, const Tensor& b) {
  if (a.dim() != b.dim()) return false;
  for (int64_t d = 0; d < a.dim(); ++d) {
    if (a.size(d) != b.size(d)) return false;
  }
  return true;
}

// Which library an op belongs to.
enum class On { kCpu, kCuda };

inline void check_on(On on, const Tensor& t, const char* name) {
  if (on == On::kCpu && !t.is_cpu()) fail(name, " must be a CPU tensor");
  if (on == On::kCuda && !t.is_cuda()) fail(name, " must be a CUDA tensor");
}

inline void check_cpu(const Tensor& t, const char* name) { check_on(On::kCpu, t, name); }

// On the device of `first`.
inline void check_beside(On on, const Tensor& t, const char* name, const Tensor& first,
                         const char* first_name) {
  check_on(on, t, name);
  if (on == On::kCuda && t.get_device_index() != first.get_device_index()) {
    fail(name, " must be on the device of ", first_name, " cuda:", first.get_device_index(),
         ", got cuda:", t.get_device_index());
  }
}

inline void check_same_shape(const Tensor& t, const char* name, const Tensor& other,
                             const char* other_name) {
  if (!same_shape(t, other)) {
    fail(name, " must have the shape of ", other_name, " ", shape_text(other), ", got ",
         shape_text(t));
  }
}

inline void check_dtype(const Tensor& t, const char* name, ScalarType expected,
                        const char* expected_name) {
  if (t.scalar_type() != expected) {
    fail(name, " must be ", expected_name, ", got dtype code ", int(t.scalar_type()));
  }
}

// The kernels' name of a floating-point type.
inline DType dtype_of(const Tensor& t, const char* name) {
  switch (t.scalar_type()) {
    case ScalarType::Float:
      return DType::kFloat32;
    case ScalarType::Double:
      return DType::kFloat64;
    case ScalarType::BFloat16:
      return DType::kBFloat16;
    case ScalarType::Half:
      return DType::kFloat16;
    default:
      fail(name, " must be float32, float64, bfloat16 or float16, got dtype code ",
           int(t.scalar_type()));
  }
}

// Kernels read bool tensors as C++ bool (one byte, 0 or 1).
inline const bool* mask_pointer(const Tensor& mask) {
  return static_cast<const bool*>(mask.const_data_ptr());
}

}  // namespace oneshot
