// Where the rows of a strided tensor begin, so that a view needs no copy.
#pragma once

#include <cstdint>

#include "common/host_device.h"

namespace oneshot {

// The leading dimensions of a tensor [..., row length], with adjacent ones merged where the strides
// allow it. Strides count elements; 0 repeats a row (broadcasting).
struct Rows {
  static constexpr int kMaxDims = 8;
  int dims = 0;
  int64_t size[kMaxDims] = {};
  int64_t stride[kMaxDims] = {};

  // Adds the next dimension, outermost first; false when there are too many that do not merge.
  bool push(int64_t dim_size, int64_t dim_stride) {
    if (dim_size == 1) return true;
    if (dims > 0 && stride[dims - 1] == dim_stride * dim_size) {
      size[dims - 1] *= dim_size;
      stride[dims - 1] = dim_stride;
      return true;
    }
    if (dims == kMaxDims) return false;
    size[dims] = dim_size;
    stride[dims] = dim_stride;
    ++dims;
    return true;
  }

  ONESHOT_HOST_DEVICE int64_t offset(int64_t row) const {
    int64_t elements = 0;
    for (int d = dims - 1; d > 0; --d) {
      elements += (row % size[d]) * stride[d];
      row /= size[d];
    }
    return dims > 0 ? elements + row * stride[0] : elements;
  }
};

}  // namespace oneshot
