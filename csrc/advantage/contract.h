// Advantages: what the kernels of every device take, on raw pointers.
#pragma once

#include <cstdint>
#include <string>

namespace oneshot {

// ---- group advantages: token rewards -> one score a row -> advantages of each group -> output

enum class Baseline { kMean, kLeaveOneOut, kLengthWeighted, kNone };
enum class Scale { kGroupStd, kBatchStd, kNone };

struct GroupRule {
  Baseline baseline;
  Scale scale;
  int64_t ddof;
  double eps;
  bool raw_singleton;  // a group of one: baseline 0 and std 1; false: advantage 0
  bool ignore_nan;     // NaN scores are left out and get 0; false: they make their group NaN
};

// From the words of the Python interface; throws std::invalid_argument for any other word.
GroupRule group_rule(const std::string& baseline, const std::string& scale, int64_t ddof,
                     double eps, const std::string& singleton, const std::string& nan);

template <typename T>
struct TokenRows {
  const T* rewards;  // [rows, steps]
  const bool* mask;  // [rows, steps], or nullptr: every place counts
  T* out;            // [rows, steps]
  int64_t rows, steps;
};

// ---- generalised advantage estimation

template <typename T>
struct GaeArgs {
  const T* rewards;
  const T* values;
  const bool* mask;           // or nullptr: every step counts
  const T* bootstrap;         // [sequences], or nullptr: 0
  const int64_t* cu_seqlens;  // packed: [sequences + 1]; nullptr: padded [sequences, steps]
  T* advantages;              // dense
  T* returns;                 // dense
  int64_t sequences, steps;
  int64_t reward_stride, value_stride, mask_stride, bootstrap_stride;  // between padded sequences
  T gamma, gamma_lam;
};

// ---- masked whitening
// Values are cut into blocks of kWhitenBlock; a block's partial sums depend on nothing but its own
// values, so the result is the same for any number of threads.
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

}  // namespace oneshot
