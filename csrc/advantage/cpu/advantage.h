// Advantages on the CPU. Kernels work on a range of independent rows, groups or blocks; the drivers
// at the end put an op together from them, with any `parallel(begin, end, grain, body)` (see
// common/parallel.h).
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "advantage/contract.h"
#include "common/parallel.h"

namespace oneshot::cpu {

// ---- group advantages

// Rows listed group by group, in row order inside a group.
struct Groups {
  std::vector<int64_t> rows;     // empty: the rows already lie group by group
  std::vector<int64_t> offsets;  // [groups + 1]
};
// Each throws std::invalid_argument if the groups do not cover `count` rows exactly.
Groups groups_of_size(int64_t size, int64_t count);
Groups groups_of_sizes(const int64_t* sizes, int64_t size_count, int64_t count);
Groups groups_of_ids(const int64_t* ids, int64_t count);

// scores[i] = sum of row i over unmasked places, lengths[i] = their number.
void row_scores(const TokenRows<float>&, double* scores, int64_t* lengths, int64_t begin,
                int64_t end);
void row_scores(const TokenRows<double>&, double* scores, int64_t* lengths, int64_t begin,
                int64_t end);

// Turns scores into advantages in place, for groups [begin, end).
void score_groups(const Groups&, const GroupRule&, double batch_std, const int64_t* lengths,
                  double* scores, int64_t begin, int64_t end);

// out[i, t] = advantages[i] in unmasked places, 0 elsewhere.
void write_rows(const TokenRows<float>&, const double* advantages, int64_t begin, int64_t end);
void write_rows(const TokenRows<double>&, const double* advantages, int64_t begin, int64_t end);

// Standard deviation of all scores; 1 if there is only one.
double batch_std(const double* scores, int64_t count, const GroupRule&);

// ---- generalised advantage estimation

// Sequences [begin, end). Every sequence is scanned in order, whatever shares the vector with it.
void gae(const GaeArgs<float>&, int64_t begin, int64_t end);
void gae(const GaeArgs<double>&, int64_t begin, int64_t end);

// Throws std::invalid_argument unless the offsets rise from 0 to count.
void check_cu_seqlens(const int64_t* cu_seqlens, int64_t size, int64_t count);

// ---- masked whitening

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

// ---- drivers

// lengths [rows] or nullptr: the number of unmasked places.
template <typename T, typename Parallel>
void group_advantages(const TokenRows<T>& tokens, const int64_t* lengths, const Groups& groups,
                      const GroupRule& rule, const Parallel& parallel) {
  std::vector<double> scores(static_cast<size_t>(tokens.rows));
  std::vector<int64_t> counted(static_cast<size_t>(tokens.rows));
  const int64_t row_grain = grain_of(tokens.steps);
  parallel(0, tokens.rows, row_grain, [&](int64_t begin, int64_t end) {
    row_scores(tokens, scores.data(), counted.data(), begin, end);
  });
  const double spread =
      rule.scale == Scale::kBatchStd ? batch_std(scores.data(), tokens.rows, rule) : 1.0;
  const auto group_count = int64_t(groups.offsets.size()) - 1;
  parallel(0, group_count, grain_of(tokens.rows / std::max<int64_t>(group_count, 1)),
           [&](int64_t begin, int64_t end) {
             score_groups(groups, rule, spread, lengths ? lengths : counted.data(), scores.data(),
                          begin, end);
           });
  parallel(0, tokens.rows, row_grain,
           [&](int64_t begin, int64_t end) { write_rows(tokens, scores.data(), begin, end); });
}

template <typename T, typename Parallel>
void whiten(const WhitenArgs<T>& args, double eps, const Parallel& parallel) {
  const int64_t blocks = whiten_blocks(args.count);
  std::vector<WhitenPartial> partials(static_cast<size_t>(blocks));
  // Two passes: the one-pass variance loses every digit when the spread is small (verl#6348).
  const auto reduce = [&](int power, double center) {
    parallel(0, blocks, grain_of(kWhitenBlock), [&](int64_t begin, int64_t end) {
      whiten_reduce(args, power, center, partials.data(), begin, end);
    });
    WhitenPartial total{0.0, 0};
    for (const auto& partial : partials) {
      total.sum += partial.sum;
      total.count += partial.count;
    }
    return total;
  };
  const auto first = reduce(1, 0.0);
  const double mean = first.count > 0 ? first.sum / double(first.count) : 0.0;
  const double variance = first.count > 1 ? reduce(2, mean).sum / double(first.count - 1) : 0.0;
  const double scale = 1.0 / std::sqrt(variance + eps);
  parallel(0, blocks, grain_of(kWhitenBlock),
           [&](int64_t begin, int64_t end) { whiten_write(args, mean, scale, begin, end); });
}

}  // namespace oneshot::cpu
