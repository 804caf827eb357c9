// Asks the kernel for huge pages under a large fresh output.
#pragma once

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include <cstdint>

namespace oneshot {

// Writing fresh memory in 4 KiB pages takes longer than computing what is written: 32 MiB cost 15
// ms of page faults on a virtual machine, against 5 ms for the scan that fills them. A hint,
// nothing more: the answer of the kernel changes no result. (torch has the same for its own
// allocations behind THP_MEM_ALLOC_ENABLE.)
inline void prefer_huge_pages(void* data, int64_t bytes) {
#if defined(MADV_HUGEPAGE)
  constexpr uintptr_t kHuge = uintptr_t{1} << 21, kPage = 4096;
  if (bytes < int64_t(2 * kHuge)) return;
  const uintptr_t begin = (reinterpret_cast<uintptr_t>(data) + kPage - 1) / kPage * kPage;
  const uintptr_t end = (reinterpret_cast<uintptr_t>(data) + uintptr_t(bytes)) / kPage * kPage;
  madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#else
  (void)data, (void)bytes;
#endif
}

}  // namespace oneshot
