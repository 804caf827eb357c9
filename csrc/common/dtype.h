// Element types the kernels read and write. Half formats travel as raw 16-bit words.
#pragma once

#include <cstdint>

namespace oneshot {

enum class DType : int { kFloat32, kFloat64, kBFloat16, kFloat16 };

struct BFloat16 {
  uint16_t bits;
};

struct Float16 {
  uint16_t bits;
};

}  // namespace oneshot
