// One `bind_<family>` a family: the CPU kernels on NumPy arrays. No torch header here.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

namespace oneshot {

namespace py = pybind11;

// C-contiguous view or copy of what the caller passed, in exactly this element type.
template <typename T>
using Dense = py::array_t<T, py::array::c_style | py::array::forcecast>;

void bind_advantage(py::module_& m);
void bind_logprob(py::module_& m);
void bind_policy_loss(py::module_& m);
void bind_routing(py::module_& m);

}  // namespace oneshot
