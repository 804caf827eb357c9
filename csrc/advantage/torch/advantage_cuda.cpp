// torch ops of the `advantage` family on CUDA tensors (stable ABI only).
#include "advantage/cuda/advantage.cuh"

#include <optional>
#include <string>
#include <tuple>

#include "torch/cuda_stream.h"

namespace oneshot {
namespace {

using OptionalTensor = std::optional<Tensor>;

template <typename T>
const T* data(const Tensor& t) {
  return static_cast<const T*>(t.const_data_ptr());
}
template <typename T>
const T* data(const OptionalTensor& t) {
  return t ? data<T>(*t) : nullptr;
}

OptionalTensor dense(const OptionalTensor& t) {
  return t ? OptionalTensor(torch::stable::contiguous(*t)) : std::nullopt;
}

void check_float(const Tensor& t, const char* name) {
  check_on(On::kCuda, t, name);
  if (t.scalar_type() != ScalarType::Float && t.scalar_type() != ScalarType::Double) {
    fail(name, " must be float32 or float64, got dtype code ", int(t.scalar_type()));
  }
}

void check_mask(const OptionalTensor& mask, const Tensor& other, const char* other_name) {
  if (!mask) return;
  check_cuda(*mask, "mask", other, other_name);
  check_dtype(*mask, "mask", ScalarType::Bool, "bool");
  check_same_shape(*mask, "mask", other, other_name);
}

// `size` < 0: any.
void check_integers(const OptionalTensor& t, const char* name, int64_t size,
                    const Tensor& rewards) {
  if (!t) return;
  check_cuda(*t, name, rewards, "rewards");
  check_dtype(*t, name, ScalarType::Long, "int64");
  if (t->dim() != 1 || (size >= 0 && t->size(0) != size)) {
    fail(name, " must have one dimension", size >= 0 ? " and one element for each row" : "",
         ", got ", shape_text(*t));
  }
}

Tensor group_advantages(const Tensor& rewards, const OptionalTensor& mask,
                        const OptionalTensor& lengths, int64_t group_size,
                        const OptionalTensor& group_ids, const OptionalTensor& group_sizes,
                        std::string baseline, std::string scale, int64_t ddof, double eps,
                        std::string singleton, std::string nan) {
  check_float(rewards, "rewards");
  if (rewards.dim() != (mask ? 2 : 1)) {
    fail("rewards must have the shape [N], or [N, T] with mask, got ", shape_text(rewards));
  }
  const int64_t rows = rewards.size(0);
  check_mask(mask, rewards, "rewards");
  check_integers(lengths, "lengths", rows, rewards);
  check_integers(group_ids, "group_ids", rows, rewards);
  check_integers(group_sizes, "group_sizes", -1, rewards);
  const cpu::GroupRule rule = cpu::group_rule(baseline, scale, ddof, eps, singleton, nan);
  if (rule.baseline == cpu::Baseline::kLengthWeighted && !lengths && !mask) {
    fail("lengths must be given for baseline opo with rewards [N]");
  }
  if (!group_ids && !group_sizes && (group_size < 1 || rows % group_size != 0)) {
    fail("groups must be >= 1 and divide the ", rows, " rows, got ", group_size);
  }
  if (group_sizes && group_sizes->size(0) == 0 && rows > 0) {
    fail("group_sizes must sum to the number of rows ", rows, ", got no groups");
  }
  const OnStreamOf stream(rewards);
  const Tensor dense_rewards = torch::stable::contiguous(rewards);
  const auto dense_mask = dense(mask), dense_lengths = dense(lengths);
  const auto ids = dense(group_ids), sizes = dense(group_sizes);
  Tensor out = torch::stable::new_empty(dense_rewards, dense_rewards.sizes());
  const Tensor workspace = device_bytes(rewards, cuda::group_advantages_workspace(rows));
  const cuda::RowGroups groups{group_size, data<int64_t>(ids), data<int64_t>(sizes),
                               sizes ? sizes->size(0) : 0};
  const auto run = [&](auto type) {
    using T = decltype(type);
    const cpu::TokenRows<T> tokens{
        data<T>(dense_rewards), dense_mask ? mask_pointer(*dense_mask) : nullptr,
        static_cast<T*>(out.mutable_data_ptr()), rows, rewards.dim() == 2 ? rewards.size(1) : 1};
    return cuda::group_advantages(tokens, data<int64_t>(dense_lengths), groups, rule,
                                  workspace.mutable_data_ptr(), stream.get());
  };
  const bool wide = rewards.scalar_type() == ScalarType::Double;
  check_launch(wide ? run(double()) : run(float()), "group_advantages");
  return out;
}

// Rows may lie anywhere (values[:, :-1] is read in place); within a row steps must be adjacent.
Tensor adjacent_steps(const Tensor& t) {
  return t.stride(t.dim() - 1) == 1 ? t : torch::stable::contiguous(t);
}

std::tuple<Tensor, Tensor> gae(const Tensor& rewards, const Tensor& values,
                               const OptionalTensor& mask, const OptionalTensor& bootstrap,
                               const OptionalTensor& cu_seqlens, double gamma, double lam) {
  check_float(rewards, "rewards");
  check_cuda(values, "values", rewards, "rewards");
  check_same_shape(values, "values", rewards, "rewards");
  check_dtype(values, "values", rewards.scalar_type(), "of the dtype of rewards");
  check_mask(mask, rewards, "rewards");
  check_integers(cu_seqlens, "cu_seqlens", -1, rewards);
  if (rewards.dim() != (cu_seqlens ? 1 : 2)) {
    fail("rewards must have the shape [B, T], or [N] with cu_seqlens, got ", shape_text(rewards));
  }
  if (cu_seqlens &&
      (cu_seqlens->size(0) < 1 || (cu_seqlens->size(0) == 1 && rewards.numel() > 0))) {
    fail("cu_seqlens must rise from 0 to ", rewards.numel(), " (the tokens)");
  }
  const int64_t sequences = cu_seqlens ? cu_seqlens->size(0) - 1 : rewards.size(0);
  if (bootstrap) {
    check_cuda(*bootstrap, "bootstrap", rewards, "rewards");
    check_dtype(*bootstrap, "bootstrap", rewards.scalar_type(), "of the dtype of rewards");
    if (bootstrap->dim() != 1 || bootstrap->size(0) != sequences) {
      fail("bootstrap must have the shape [", sequences, "], got ", shape_text(*bootstrap));
    }
  }
  const OnStreamOf stream(rewards);
  const auto offsets = dense(cu_seqlens);
  const Tensor r = adjacent_steps(rewards), v = adjacent_steps(values);
  const OptionalTensor m = mask ? OptionalTensor(adjacent_steps(*mask)) : std::nullopt;
  Tensor advantages = torch::stable::new_empty(rewards, rewards.sizes());
  Tensor returns = torch::stable::new_empty(rewards, rewards.sizes());
  const auto run = [&](auto type) {
    using T = decltype(type);
    const cpu::GaeArgs<T> args{data<T>(r),
                               data<T>(v),
                               m ? mask_pointer(*m) : nullptr,
                               data<T>(bootstrap),
                               data<int64_t>(offsets),
                               static_cast<T*>(advantages.mutable_data_ptr()),
                               static_cast<T*>(returns.mutable_data_ptr()),
                               sequences,
                               offsets ? 0 : rewards.size(1),
                               r.stride(0),
                               v.stride(0),
                               m ? m->stride(0) : 0,
                               bootstrap ? bootstrap->stride(0) : 0,
                               T(gamma),
                               T(gamma * lam)};
    return cuda::gae(args, rewards.numel(), stream.get());
  };
  const bool wide = rewards.scalar_type() == ScalarType::Double;
  check_launch(wide ? run(double()) : run(float()), "gae");
  return {advantages, returns};
}

Tensor whiten(const Tensor& values, const OptionalTensor& mask, bool shift_mean, double eps) {
  check_float(values, "values");
  check_mask(mask, values, "values");
  const OnStreamOf stream(values);
  const Tensor dense_values = torch::stable::contiguous(values);
  const auto dense_mask = dense(mask);
  Tensor out = torch::stable::new_empty(dense_values, dense_values.sizes());
  const Tensor workspace = device_bytes(values, cuda::whiten_workspace(values.numel()));
  const auto run = [&](auto type) {
    using T = decltype(type);
    const cpu::WhitenArgs<T> args{
        data<T>(dense_values), dense_mask ? mask_pointer(*dense_mask) : nullptr,
        static_cast<T*>(out.mutable_data_ptr()), values.numel(), shift_mean};
    return cuda::whiten(args, eps, workspace.mutable_data_ptr(), stream.get());
  };
  const bool wide = values.scalar_type() == ScalarType::Double;
  check_launch(wide ? run(double()) : run(float()), "whiten");
  return out;
}

}  // namespace
}  // namespace oneshot

STABLE_TORCH_LIBRARY_IMPL(oneshot, CUDA, m) {
  m.impl("group_advantages", TORCH_BOX(&oneshot::group_advantages));
  m.impl("gae", TORCH_BOX(&oneshot::gae));
  m.impl("whiten", TORCH_BOX(&oneshot::whiten));
}
