// What the files of the `hmm` family in csrc/torch share.
#pragma once

#include <atomic>
#include <optional>

#include "hmm/contract.h"
#include "torch/checks.h"

namespace oneshot {

// Tasks of uneven length are handed out one by one to torch's threads.
inline cpu::Workers torch_workers() {
  cpu::Workers workers;
  workers.threads = int(torch::stable::get_num_threads());
  workers.run = [](int64_t count, const std::function<void(int64_t)>& body) {
    std::atomic<int64_t> next{0};
    torch::stable::parallel_for(0, count, 1, [&](int64_t, int64_t) {
      for (int64_t i; (i = next.fetch_add(1)) < count;) body(i);
    });
  };
  return workers;
}

template <typename T>
const T* data(const Tensor& t) {
  return static_cast<const T*>(t.const_data_ptr());
}
template <typename T>
const T* data(const std::optional<Tensor>& t) {
  return t ? data<T>(*t) : nullptr;
}
template <typename T>
T* mutable_data(const Tensor& t) {
  return static_cast<T*>(t.mutable_data_ptr());
}

inline std::optional<Tensor> dense(const std::optional<Tensor>& t) {
  return t ? std::optional<Tensor>(torch::stable::contiguous(*t)) : std::nullopt;
}

inline void check_like(On on, const Tensor& t, const char* name, const Tensor& other,
                       const char* other_name) {
  check_on(on, t, name);
  if (t.scalar_type() != other.scalar_type()) {
    fail(name, " must have the dtype of ", other_name, ", got dtype code ", int(t.scalar_type()));
  }
}

inline void check_float_or_double(On on, const Tensor& t, const char* name) {
  check_on(on, t, name);
  if (t.scalar_type() != ScalarType::Float && t.scalar_type() != ScalarType::Double) {
    fail(name, " must be float32 or float64, got dtype code ", int(t.scalar_type()));
  }
}

// Calls body(T()) with the element type of the tensors.
template <typename Body>
void with_type(const Tensor& t, const Body& body) {
  if (t.scalar_type() == ScalarType::Float) {
    body(float());
  } else {
    body(double());
  }
}

}  // namespace oneshot
