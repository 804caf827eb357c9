#include <cmath>
#include <optional>
#include <vector>

#include "cpu/advantage.h"
#include "python/bindings.h"

namespace oneshot {
namespace {

py::array_t<float> whiten(const Dense<float>& values, const std::optional<Dense<bool>>& mask,
                          bool shift_mean, double eps) {
  py::array_t<float> out(std::vector<py::ssize_t>(values.shape(), values.shape() + values.ndim()));
  const cpu::WhitenArgs<float> args{values.data(), mask ? mask->data() : nullptr,
                                    out.mutable_data(), int64_t(values.size()), shift_mean};
  const int64_t blocks = cpu::whiten_blocks(args.count);
  std::vector<cpu::WhitenPartial> partials(static_cast<size_t>(blocks));
  const auto total = [&](int power, double center) {
    cpu::whiten_reduce(args, power, center, partials.data(), 0, blocks);
    cpu::WhitenPartial sum{0.0, 0};
    for (const auto& partial : partials) {
      sum.sum += partial.sum;
      sum.count += partial.count;
    }
    return sum;
  };
  const auto first = total(1, 0.0);
  const double mean = first.count > 0 ? first.sum / double(first.count) : 0.0;
  const double variance = first.count > 1 ? total(2, mean).sum / double(first.count - 1) : 0.0;
  cpu::whiten_write(args, mean, 1.0 / std::sqrt(variance + eps), 0, blocks);
  return out;
}

}  // namespace

void bind_advantage(py::module_& m) {
  m.def("whiten", &whiten, py::arg("values"), py::arg("mask"), py::arg("shift_mean"),
        py::arg("eps"));
}

}  // namespace oneshot
