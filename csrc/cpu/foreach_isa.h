// Includes the kernel body once per instruction-set level, each in a namespace of its own.
//
//   #define ONESHOT_KERNEL_BODY "cpu/<family>.inc"
//   #include "cpu/foreach_isa.h"
//
// The target is set in the source by pragma, so no build flag can leak an instruction into code
// that runs on an older machine. For the same reason a body includes no header: what it needs is
// included before this file, outside the target regions, or is in body.h. So that it can be read by
// itself, it begins with its headers, for the case that it is opened alone:
//
//   #ifndef ONESHOT_KERNEL_BODY
//   #include "cpu/alone.h"
//   #include "<family>/contract.h"
//   #endif
//
// No include guard: one family, one inclusion.

#include "cpu/body.h"
#ifndef ONESHOT_KERNEL_BODY  // opened alone
#define ONESHOT_KERNEL_BODY "cpu/body.h"
#endif
#define ONESHOT_LANES  // the files of simd/ are not opened alone either

// GCC's own _mm512_undefined_*() helpers trip these two, thousands of times.
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif

namespace oneshot::cpu::scalar {
#include "cpu/simd/scalar.h"
#include ONESHOT_KERNEL_BODY
}  // namespace oneshot::cpu::scalar

#if ONESHOT_X86
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")
#endif
namespace oneshot::cpu::avx2 {
#include "cpu/simd/avx2.h"
#include ONESHOT_KERNEL_BODY
}  // namespace oneshot::cpu::avx2
#if defined(__clang__)
#pragma clang attribute pop
#pragma clang attribute push(                                                    \
    __attribute__((target("avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl"))), \
    apply_to = function)
#else
#pragma GCC pop_options
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,prefer-vector-width=512")
#endif
namespace oneshot::cpu::avx512 {
#include "cpu/simd/avx512.h"
#include ONESHOT_KERNEL_BODY
}  // namespace oneshot::cpu::avx512
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic pop
#endif
