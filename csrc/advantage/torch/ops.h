// torch ops of the `advantage` family, one body for both devices. `Device` runs the kernels of a
// call: advantage.cpp has the one of the CPU, advantage_cuda.cpp the one of a GPU.
#pragma once

#include <string>
#include <tuple>

#include "advantage/contract.h"
#include "torch/tensors.h"

namespace oneshot {

template <typename Device>
struct AdvantageOps {
  static Tensor group_advantages(const Tensor& rewards, const OptionalTensor& mask,
                                 const OptionalTensor& lengths, int64_t group_size,
                                 const OptionalTensor& group_ids, const OptionalTensor& group_sizes,
                                 std::string baseline, std::string scale, int64_t ddof, double eps,
                                 std::string singleton, std::string nan) {
    check_float_or_double(Device::kOn, rewards, "rewards");
    if (rewards.dim() != (mask ? 2 : 1)) {
      fail("rewards must have the shape [N], or [N, T] with mask, got ", shape_text(rewards));
    }
    const int64_t rows = rewards.size(0);
    check_mask(Device::kOn, mask, rewards, "rewards");
    check_integers(lengths, "lengths", rows, rewards);
    check_integers(group_ids, "group_ids", rows, rewards);
    check_integers(group_sizes, "group_sizes", -1, rewards);
    const GroupRule rule = group_rule(baseline, scale, ddof, eps, singleton, nan);
    if (rule.baseline == Baseline::kLengthWeighted && !lengths && !mask) {
      fail("lengths must be given for baseline opo with rewards [N]");
    }
    const Device device(rewards);
    const OptionalTensor ids = dense(group_ids), sizes = dense(group_sizes);
    const auto groups = device.groups(group_size, ids, sizes, rows);
    const Tensor values = dense(rewards);
    const OptionalTensor counts = dense(mask), given_lengths = dense(lengths);
    Tensor out = fresh_like(values);
    with_real_type(values, [&](auto type) {
      using T = decltype(type);
      const TokenRows<T> tokens{data<T>(values), mask_pointer(counts), mutable_data<T>(out), rows,
                                rewards.dim() == 2 ? rewards.size(1) : 1};
      device.group_advantages(tokens, data<int64_t>(given_lengths), groups, rule);
    });
    return out;
  }

  static std::tuple<Tensor, Tensor> gae(const Tensor& rewards, const Tensor& values,
                                        const OptionalTensor& mask, const OptionalTensor& bootstrap,
                                        const OptionalTensor& cu_seqlens, double gamma,
                                        double lam) {
    check_float_or_double(Device::kOn, rewards, "rewards");
    check_like(Device::kOn, values, "values", rewards, "rewards");
    check_same_shape(values, "values", rewards, "rewards");
    check_mask(Device::kOn, mask, rewards, "rewards");
    check_integers(cu_seqlens, "cu_seqlens", -1, rewards);
    if (rewards.dim() != (cu_seqlens ? 1 : 2)) {
      fail("rewards must have the shape [B, T], or [N] with cu_seqlens, got ", shape_text(rewards));
    }
    const Device device(rewards);
    const OptionalTensor offsets = dense(cu_seqlens);
    if (offsets) device.check_offsets(*offsets, rewards.numel());
    const int64_t sequences = offsets ? offsets->size(0) - 1 : rewards.size(0);
    if (bootstrap) {
      check_like(Device::kOn, *bootstrap, "bootstrap", rewards, "rewards");
      if (bootstrap->dim() != 1 || bootstrap->size(0) != sequences) {
        fail("bootstrap must have the shape [", sequences, "], got ", shape_text(*bootstrap));
      }
    }
    const Tensor r = adjacent_steps(rewards), v = adjacent_steps(values);
    const OptionalTensor m = mask ? OptionalTensor(adjacent_steps(*mask)) : std::nullopt;
    Tensor advantages = fresh_like(rewards), returns = fresh_like(rewards);
    with_real_type(rewards, [&](auto type) {
      using T = decltype(type);
      const GaeArgs<T> args{data<T>(r),
                            data<T>(v),
                            mask_pointer(m),
                            data<T>(bootstrap),
                            data<int64_t>(offsets),
                            mutable_data<T>(advantages),
                            mutable_data<T>(returns),
                            sequences,
                            offsets ? 0 : rewards.size(1),
                            r.stride(0),
                            v.stride(0),
                            m ? m->stride(0) : 0,
                            bootstrap ? bootstrap->stride(0) : 0,
                            T(gamma),
                            T(gamma * lam)};
      device.gae(args, rewards.numel());
    });
    return {advantages, returns};
  }

  static Tensor whiten(const Tensor& values, const OptionalTensor& mask, bool shift_mean,
                       double eps) {
    check_float_or_double(Device::kOn, values, "values");
    check_mask(Device::kOn, mask, values, "values");
    const Device device(values);
    const Tensor all = dense(values);
    const OptionalTensor counts = dense(mask);
    Tensor out = fresh_like(all);
    with_real_type(all, [&](auto type) {
      using T = decltype(type);
      const WhitenArgs<T> args{data<T>(all), mask_pointer(counts), mutable_data<T>(out),
                               all.numel(), shift_mean};
      device.whiten(args, eps);
    });
    return out;
  }

 private:
  // `size` < 0: any.
  static void check_integers(const OptionalTensor& t, const char* name, int64_t size,
                             const Tensor& rewards) {
    if (!t) return;
    check_beside(Device::kOn, *t, name, rewards, "rewards");
    check_dtype(*t, name, ScalarType::Long, "int64");
    if (t->dim() != 1 || (size >= 0 && t->size(0) != size)) {
      fail(name, " must have one dimension", size >= 0 ? " and one element for each row" : "",
           ", got ", shape_text(*t));
    }
  }

  // Rows may lie anywhere (values[:, :-1] is read in place); within a row steps must be adjacent.
  static Tensor adjacent_steps(const Tensor& t) {
    return t.stride(t.dim() - 1) == 1 ? t : dense(t);
  }
};

template <typename Device, typename Library>
void register_advantage(Library& m) {
  m.impl("group_advantages", TORCH_BOX(&AdvantageOps<Device>::group_advantages));
  m.impl("gae", TORCH_BOX(&AdvantageOps<Device>::gae));
  m.impl("whiten", TORCH_BOX(&AdvantageOps<Device>::whiten));
}

}  // namespace oneshot
