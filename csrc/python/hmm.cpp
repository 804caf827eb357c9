#include "cpu/hmm.h"

#include "python/bindings.h"

namespace oneshot {

void bind_hmm(py::module_&) {}

}  // namespace oneshot
