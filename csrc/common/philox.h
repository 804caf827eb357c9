// The counter-based generator of hmm_sample: Philox4x32-10 (Salmon et al. 2011).
#pragma once

#include <cstdint>

#include "common/host_device.h"

namespace oneshot {

struct PhiloxWords {
  uint32_t word[4];
};

ONESHOT_HOST_DEVICE inline PhiloxWords philox(PhiloxWords counter, uint32_t key0, uint32_t key1) {
  uint32_t (&c)[4] = counter.word;
  for (int round = 0; round < 10; ++round) {
    const uint64_t first = uint64_t{0xD2511F53u} * c[0], second = uint64_t{0xCD9E8D57u} * c[2];
    const uint32_t c1 = c[1], c3 = c[3];
    c[0] = uint32_t(second >> 32) ^ c1 ^ key0;
    c[1] = uint32_t(second);
    c[2] = uint32_t(first >> 32) ^ c3 ^ key1;
    c[3] = uint32_t(first);
    key0 += 0x9E3779B9u;
    key1 += 0xBB67AE85u;
  }
  return counter;
}

// Of the sequence `id`: uniform in [0, 1), the first 24 bits for float, the first 53 for double.
template <typename T>
ONESHOT_HOST_DEVICE double uniform(uint64_t seed, uint64_t id, int64_t sample, int64_t t) {
  const PhiloxWords w = philox({{uint32_t(id), uint32_t(id >> 32), uint32_t(sample), uint32_t(t)}},
                               uint32_t(seed), uint32_t(seed >> 32));
  if (sizeof(T) == sizeof(float)) return double(w.word[0] >> 8) * 0x1p-24;
  const uint64_t bits = (uint64_t{w.word[0]} << 21) | (w.word[1] >> 11);
  return double(bits) * 0x1p-53;
}

}  // namespace oneshot
