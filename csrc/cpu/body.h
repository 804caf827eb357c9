// What a kernel body may take for granted beside the lane types of its level: standard headers,
// element types and the markers of functions that must be inlined. A body is included once per
// level (see foreach_isa.h), inside a region compiled for newer machines, where no header may be
// included for the first time.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>
#include <vector>

#include "common/dtype.h"
#include "cpu/isa.h"
#if ONESHOT_X86
#include <immintrin.h>
#endif

// Everything between memory and lanes must end up in one loop: a call would pass vectors through
// memory.
#define ONESHOT_INLINE inline __attribute__((always_inline))
#define ONESHOT_INLINE_LAMBDA __attribute__((always_inline))
