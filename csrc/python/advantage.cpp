#include "cpu/advantage.h"

#include <optional>
#include <string>
#include <vector>

#include "common/parallel.h"
#include "python/bindings.h"

namespace oneshot {
namespace {

template <typename T>
using Optional = std::optional<Dense<T>>;

template <typename T>
const T* data(const Optional<T>& array) {
  return array ? array->data() : nullptr;
}

py::array_t<float> like(const Dense<float>& array) {
  return py::array_t<float>(std::vector<py::ssize_t>(array.shape(), array.shape() + array.ndim()));
}

// Shapes are checked by oneshot/numpy.py.
py::array_t<float> group_advantages(const Dense<float>& rewards, const Optional<bool>& mask,
                                    const Optional<int64_t>& lengths, int64_t group_size,
                                    const Optional<int64_t>& group_ids,
                                    const Optional<int64_t>& group_sizes,
                                    const std::string& baseline, const std::string& scale,
                                    int64_t ddof, double eps, const std::string& singleton,
                                    const std::string& nan) {
  const auto rule = cpu::group_rule(baseline, scale, ddof, eps, singleton, nan);
  auto out = like(rewards);
  const cpu::TokenRows<float> tokens{rewards.data(), data(mask), out.mutable_data(),
                                     rewards.shape(0), rewards.ndim() == 2 ? rewards.shape(1) : 1};
  const auto groups =
      group_ids     ? cpu::groups_of_ids(group_ids->data(), tokens.rows)
      : group_sizes ? cpu::groups_of_sizes(group_sizes->data(), group_sizes->size(), tokens.rows)
                    : cpu::groups_of_size(group_size, tokens.rows);
  cpu::group_advantages(tokens, data(lengths), groups, rule, Serial{});
  return out;
}

py::tuple gae(const Dense<float>& rewards, const Dense<float>& values, const Optional<bool>& mask,
              const Optional<float>& bootstrap, const Optional<int64_t>& cu_seqlens, double gamma,
              double lam) {
  if (cu_seqlens) {
    cpu::check_cu_seqlens(cu_seqlens->data(), cu_seqlens->size(), rewards.size());
  }
  auto advantages = like(rewards), returns = like(rewards);
  const int64_t steps = cu_seqlens ? 0 : rewards.shape(1);
  const int64_t sequences = cu_seqlens ? cu_seqlens->size() - 1 : rewards.shape(0);
  const cpu::GaeArgs<float> args{rewards.data(),
                                 values.data(),
                                 data(mask),
                                 data(bootstrap),
                                 data(cu_seqlens),
                                 advantages.mutable_data(),
                                 returns.mutable_data(),
                                 sequences,
                                 steps,
                                 steps,
                                 steps,
                                 steps,
                                 1,
                                 float(gamma),
                                 float(gamma * lam)};
  cpu::gae(args, 0, sequences);
  return py::make_tuple(advantages, returns);
}

py::array_t<float> whiten(const Dense<float>& values, const Optional<bool>& mask, bool shift_mean,
                          double eps) {
  auto out = like(values);
  const cpu::WhitenArgs<float> args{values.data(), data(mask), out.mutable_data(),
                                    int64_t(values.size()), shift_mean};
  cpu::whiten(args, eps, Serial{});
  return out;
}

}  // namespace

void bind_advantage(py::module_& m) {
  m.def("group_advantages", &group_advantages);
  m.def("gae", &gae);
  m.def("whiten", &whiten);
}

}  // namespace oneshot
