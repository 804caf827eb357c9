#include "cpu/routing.h"

#include <optional>

#include "common/parallel.h"
#include "python/bindings.h"

namespace oneshot {
namespace {

// Shapes are checked by oneshot/numpy/routing.py.

// inventory [heads, skills, p, q], weights [mixtures, heads, skills].
py::array_t<float> mix_adapters(const Dense<float>& inventory, const Dense<float>& weights,
                                bool transposed) {
  const cpu::Inventory described{DType::kFloat32,    inventory.data(),   inventory.shape(0),
                                 inventory.shape(1), inventory.shape(2), inventory.shape(3),
                                 transposed};
  const int64_t mixtures = weights.shape(0);
  py::array_t<float> mixture({mixtures, described.rank(), described.length()});
  cpu::mix({described, weights.data(), mixture.mutable_data(), mixtures}, 0,
           cpu::mix_items(described));
  return mixture;
}

// x [rows, d_in], mixed_a [mixtures, rank, d_in], mixed_b [mixtures, rank, d_out], mixture_of [rows].
py::array_t<float> routed_lora(const Dense<float>& x, const Dense<float>& mixed_a,
                               const Dense<float>& mixed_b, const Dense<int64_t>& mixture_of,
                               const std::optional<Dense<float>>& base, double scaling) {
  const cpu::LoraShape shape{DType::kFloat32, mixed_a.shape(0), mixed_a.shape(1),
                             mixed_a.shape(2), mixed_b.shape(2)};
  const int64_t rows = x.shape(0);
  const auto groups = cpu::group_rows(mixture_of.data(), rows, 1, shape.mixtures);
  py::array_t<float> shrunk({rows, shape.rank}), y({rows, shape.d_out});
  cpu::lora({shape, x.data(), mixed_a.data(), mixed_b.data(), base ? base->data() : nullptr,
             shrunk.mutable_data(), y.mutable_data(), scaling},
            groups, 0, int64_t(groups.blocks.size()));
  return y;
}

}  // namespace

void bind_routing(py::module_& m) {
  m.def("mix_adapters", &mix_adapters);
  m.def("routed_lora", &routed_lora);
}

}  // namespace oneshot
