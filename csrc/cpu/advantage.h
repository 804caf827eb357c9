// Advantages on the CPU: torch-free contract on raw pointers.
#pragma once

#include <cstdint>

namespace oneshot::cpu {

// Masked whitening. Values are cut into blocks of kWhitenBlock; a block's partial sums depend on
// nothing but its own values, so the result is the same for any number of threads.
inline constexpr int64_t kWhitenBlock = 4096;

template <typename T>
struct WhitenArgs {
  const T* values;   // [count]
  const bool* mask;  // [count], or nullptr: every value counts
  T* out;            // [count]
  int64_t count;
  bool shift_mean;  // false adds the mean back
};

struct WhitenPartial {
  double sum;
  int64_t count;
};

inline int64_t whiten_blocks(int64_t count) { return (count + kWhitenBlock - 1) / kWhitenBlock; }

// partials[b].sum = sum of (value - center)^power over the unmasked values of block b.
void whiten_reduce(const WhitenArgs<float>&, int power, double center, WhitenPartial* partials,
                   int64_t block_begin, int64_t block_end);
void whiten_reduce(const WhitenArgs<double>&, int power, double center, WhitenPartial* partials,
                   int64_t block_begin, int64_t block_end);

// out = (value - mean) * scale (+ mean); masked places get 0.
void whiten_write(const WhitenArgs<float>&, double mean, double scale, int64_t block_begin,
                  int64_t block_end);
void whiten_write(const WhitenArgs<double>&, double mean, double scale, int64_t block_begin,
                  int64_t block_end);

}  // namespace oneshot::cpu
