#include "cpu/policy_loss.h"
#include "python/bindings.h"

namespace oneshot {
void bind_policy_loss(py::module_&) {}
}  // namespace oneshot
