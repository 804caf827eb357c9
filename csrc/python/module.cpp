// oneshot._C: importing it registers the torch ops (static initialisers of csrc/torch).
#include <pybind11/pybind11.h>

#include "cpu/isa.h"

PYBIND11_MODULE(_C, m) {
  m.doc() = "Native kernels of oneshot; use oneshot.ops and oneshot.numpy.";
  m.def("isa", [] { return oneshot::cpu::isa_name(oneshot::cpu::isa()); });
  m.def("best_isa", [] { return oneshot::cpu::isa_name(oneshot::cpu::best_isa()); });
  m.attr("version") = ONESHOT_VERSION;
  m.attr("torch_version") = ONESHOT_TORCH_VERSION;
  m.attr("compiler") = __VERSION__;
}
