// For a kernel body that is opened by itself, by an editor or by tests/csrc/standalone.py: the lane
// types of the scalar level, which otherwise come from foreach_isa.h. Nothing of it is in a build.
#pragma once

#include "cpu/body.h"

#define ONESHOT_LANES
#define ONESHOT_KERNEL_BODY "cpu/alone.h"  // what the body includes is not opened alone
namespace oneshot::cpu::scalar {
#include "cpu/simd/scalar.h"
}  // namespace oneshot::cpu::scalar

using namespace oneshot;               // NOLINT
using namespace oneshot::cpu;          // NOLINT
using namespace oneshot::cpu::scalar;  // NOLINT
