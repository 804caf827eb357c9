// torch ops of the `advantage` family on CPU tensors (stable ABI only).
#include "advantage/contract.h"

#include <optional>
#include <string>
#include <tuple>

#include "torch/checks.h"
#include "torch/huge_pages.h"

namespace oneshot {
namespace {

// Runs a driver's ranges on torch's threads.
struct TorchThreads {
  template <typename Body>
  void operator()(int64_t begin, int64_t end, int64_t grain, const Body& body) const {
    torch::stable::parallel_for(begin, end, grain, body);
  }
};

template <typename T>
const T* data(const Tensor& t) {
  return static_cast<const T*>(t.const_data_ptr());
}

template <typename T>
const T* data(const std::optional<Tensor>& t) {
  return t ? data<T>(*t) : nullptr;
}

std::optional<Tensor> dense(const std::optional<Tensor>& t) {
  return t ? std::optional<Tensor>(torch::stable::contiguous(*t)) : std::nullopt;
}

void check_float(const Tensor& t, const char* name) {
  check_cpu(t, name);
  if (t.scalar_type() != ScalarType::Float && t.scalar_type() != ScalarType::Double) {
    fail(name, " must be float32 or float64, got dtype code ", int(t.scalar_type()));
  }
}

void check_mask(const std::optional<Tensor>& mask, const Tensor& other, const char* other_name) {
  if (!mask) return;
  check_cpu(*mask, "mask");
  check_dtype(*mask, "mask", ScalarType::Bool, "bool");
  check_same_shape(*mask, "mask", other, other_name);
}

// `size` < 0: any.
void check_integers(const std::optional<Tensor>& t, const char* name, int64_t size) {
  if (!t) return;
  check_cpu(*t, name);
  check_dtype(*t, name, ScalarType::Long, "int64");
  if (t->dim() != 1 || (size >= 0 && t->size(0) != size)) {
    fail(name, " must have one dimension", size >= 0 ? " and one element for each row" : "",
         ", got ", shape_text(*t));
  }
}

// ---- group_advantages

cpu::Groups make_groups(int64_t size, const std::optional<Tensor>& ids,
                        const std::optional<Tensor>& sizes, int64_t rows) {
  if (ids) return cpu::groups_of_ids(data<int64_t>(ids), rows);
  if (sizes) return cpu::groups_of_sizes(data<int64_t>(sizes), sizes->size(0), rows);
  return cpu::groups_of_size(size, rows);
}

template <typename T>
void group_advantages_into(const Tensor& rewards, const std::optional<Tensor>& mask,
                           const std::optional<Tensor>& lengths, const cpu::Groups& groups,
                           const cpu::GroupRule& rule, Tensor& out) {
  const cpu::TokenRows<T> tokens{data<T>(rewards), mask ? mask_pointer(*mask) : nullptr,
                                 static_cast<T*>(out.mutable_data_ptr()), rewards.size(0),
                                 rewards.dim() == 2 ? rewards.size(1) : 1};
  cpu::group_advantages(tokens, data<int64_t>(lengths), groups, rule, TorchThreads{});
}

Tensor group_advantages(const Tensor& rewards, const std::optional<Tensor>& mask,
                        const std::optional<Tensor>& lengths, int64_t group_size,
                        const std::optional<Tensor>& group_ids,
                        const std::optional<Tensor>& group_sizes, std::string baseline,
                        std::string scale, int64_t ddof, double eps, std::string singleton,
                        std::string nan) {
  check_float(rewards, "rewards");
  if (rewards.dim() != (mask ? 2 : 1)) {
    fail("rewards must have the shape [N], or [N, T] with mask, got ", shape_text(rewards));
  }
  const int64_t rows = rewards.size(0);
  check_mask(mask, rewards, "rewards");
  check_integers(lengths, "lengths", rows);
  check_integers(group_ids, "group_ids", rows);
  check_integers(group_sizes, "group_sizes", -1);
  const cpu::GroupRule rule = cpu::group_rule(baseline, scale, ddof, eps, singleton, nan);
  if (rule.baseline == cpu::Baseline::kLengthWeighted && !lengths && !mask) {
    fail("lengths must be given for baseline opo with rewards [N]");
  }
  const cpu::Groups groups = make_groups(group_size, dense(group_ids), dense(group_sizes), rows);
  const Tensor dense_rewards = torch::stable::contiguous(rewards);
  Tensor out = torch::stable::new_empty(dense_rewards, dense_rewards.sizes());
  const auto run = rewards.scalar_type() == ScalarType::Float ? group_advantages_into<float>
                                                              : group_advantages_into<double>;
  run(dense_rewards, dense(mask), dense(lengths), groups, rule, out);
  return out;
}

// ---- gae

// Rows may lie anywhere (values[:, :-1] is read in place); within a row steps must be adjacent.
Tensor adjacent_steps(const Tensor& t) {
  return t.stride(t.dim() - 1) == 1 ? t : torch::stable::contiguous(t);
}

template <typename T>
void gae_into(const Tensor& rewards, const Tensor& values, const std::optional<Tensor>& mask,
              const std::optional<Tensor>& bootstrap, const std::optional<Tensor>& cu_seqlens,
              double gamma, double lam, Tensor& advantages, Tensor& returns) {
  const bool packed = cu_seqlens.has_value();
  const int64_t sequences = packed ? cu_seqlens->size(0) - 1 : rewards.size(0);
  const cpu::GaeArgs<T> args{data<T>(rewards),
                             data<T>(values),
                             mask ? mask_pointer(*mask) : nullptr,
                             data<T>(bootstrap),
                             data<int64_t>(cu_seqlens),
                             static_cast<T*>(advantages.mutable_data_ptr()),
                             static_cast<T*>(returns.mutable_data_ptr()),
                             sequences,
                             packed ? 0 : rewards.size(1),
                             rewards.stride(0),
                             values.stride(0),
                             mask ? mask->stride(0) : 0,
                             bootstrap ? bootstrap->stride(0) : 0,
                             T(gamma),
                             T(gamma * lam)};
  const int64_t steps = packed ? rewards.numel() / (sequences + 1) : args.steps;
  TorchThreads{}(0, sequences, 16 + 32768 / (steps + 1),
                 [&](int64_t begin, int64_t end) { cpu::gae(args, begin, end); });
}

std::tuple<Tensor, Tensor> gae(const Tensor& rewards, const Tensor& values,
                               const std::optional<Tensor>& mask,
                               const std::optional<Tensor>& bootstrap,
                               const std::optional<Tensor>& cu_seqlens, double gamma, double lam) {
  check_float(rewards, "rewards");
  check_cpu(values, "values");
  check_same_shape(values, "values", rewards, "rewards");
  check_dtype(values, "values", rewards.scalar_type(), "of the dtype of rewards");
  check_mask(mask, rewards, "rewards");
  check_integers(cu_seqlens, "cu_seqlens", -1);
  if (rewards.dim() != (cu_seqlens ? 1 : 2)) {
    fail("rewards must have the shape [B, T], or [N] with cu_seqlens, got ", shape_text(rewards));
  }
  const auto offsets = dense(cu_seqlens);
  if (offsets) {
    cpu::check_cu_seqlens(data<int64_t>(offsets), offsets->size(0), rewards.numel());
  }
  if (bootstrap) {
    const int64_t sequences = offsets ? offsets->size(0) - 1 : rewards.size(0);
    check_cpu(*bootstrap, "bootstrap");
    check_dtype(*bootstrap, "bootstrap", rewards.scalar_type(), "of the dtype of rewards");
    if (bootstrap->dim() != 1 || bootstrap->size(0) != sequences) {
      fail("bootstrap must have the shape [", sequences, "], got ", shape_text(*bootstrap));
    }
  }
  std::optional<Tensor> steps_mask;
  if (mask) steps_mask = adjacent_steps(*mask);
  Tensor advantages = torch::stable::new_empty(rewards, rewards.sizes());
  Tensor returns = torch::stable::new_empty(rewards, rewards.sizes());
  const int64_t bytes = rewards.numel() * int64_t(rewards.element_size());
  prefer_huge_pages(advantages.mutable_data_ptr(), bytes);
  prefer_huge_pages(returns.mutable_data_ptr(), bytes);
  const auto run = rewards.scalar_type() == ScalarType::Float ? gae_into<float> : gae_into<double>;
  run(adjacent_steps(rewards), adjacent_steps(values), steps_mask, bootstrap, offsets, gamma, lam,
      advantages, returns);
  return {advantages, returns};
}

// ---- whiten

template <typename T>
void whiten_into(const Tensor& values, const std::optional<Tensor>& mask, bool shift_mean,
                 double eps, Tensor& out) {
  const cpu::WhitenArgs<T> args{data<T>(values), mask ? mask_pointer(*mask) : nullptr,
                                static_cast<T*>(out.mutable_data_ptr()), values.numel(),
                                shift_mean};
  cpu::whiten(args, eps, TorchThreads{});
}

Tensor whiten(const Tensor& values, const std::optional<Tensor>& mask, bool shift_mean,
              double eps) {
  check_float(values, "values");
  check_mask(mask, values, "values");
  const Tensor dense_values = torch::stable::contiguous(values);
  Tensor out = torch::stable::new_empty(dense_values, dense_values.sizes());
  const auto run =
      values.scalar_type() == ScalarType::Float ? whiten_into<float> : whiten_into<double>;
  run(dense_values, dense(mask), shift_mean, eps, out);
  return out;
}

}  // namespace
}  // namespace oneshot

STABLE_TORCH_LIBRARY_IMPL(oneshot, CPU, m) {
  m.impl("group_advantages", TORCH_BOX(&oneshot::group_advantages));
  m.impl("gae", TORCH_BOX(&oneshot::gae));
  m.impl("whiten", TORCH_BOX(&oneshot::whiten));
}
