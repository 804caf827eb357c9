#include "advantage/cpu/advantage.h"

#include <algorithm>
#include <stdexcept>
#include <string>
#include <type_traits>

#define ONESHOT_KERNEL_BODY "advantage/cpu/advantage.inc"
#include "cpu/foreach_isa.h"

namespace oneshot::cpu {

namespace {

[[noreturn]] void reject(const std::string& message) { throw std::invalid_argument(message); }

}  // namespace

Groups groups_of_size(int64_t size, int64_t count) {
  if (size < 1 || count % size != 0) {
    reject("groups must be >= 1 and divide the " + std::to_string(count) + " rows, got " +
           std::to_string(size));
  }
  Groups groups;
  groups.offsets.resize(static_cast<size_t>(count / size + 1));
  for (size_t g = 0; g < groups.offsets.size(); ++g) groups.offsets[g] = int64_t(g) * size;
  return groups;
}

Groups groups_of_sizes(const int64_t* sizes, int64_t size_count, int64_t count) {
  Groups groups;
  groups.offsets.reserve(static_cast<size_t>(size_count + 1));
  groups.offsets.push_back(0);
  for (int64_t g = 0; g < size_count; ++g) {
    if (sizes[g] < 0) reject("group_sizes must be >= 0, got " + std::to_string(sizes[g]));
    // Compared with what is left, so that absurd sizes cannot overflow the sum.
    if (sizes[g] > count - groups.offsets.back()) {
      reject("group_sizes must sum to the number of rows " + std::to_string(count) + ", got more");
    }
    groups.offsets.push_back(groups.offsets.back() + sizes[g]);
  }
  if (groups.offsets.back() != count) {
    reject("group_sizes must sum to the number of rows " + std::to_string(count) + ", got " +
           std::to_string(groups.offsets.back()));
  }
  return groups;
}

Groups groups_of_ids(const int64_t* ids, int64_t count) {
  // Open addressing: ids are numbered by first appearance, then rows are placed by counting.
  int bits = 4;
  while ((int64_t{1} << bits) < 2 * count) ++bits;
  const size_t slots = size_t{1} << bits;
  std::vector<int64_t> first_row(slots, -1), number(static_cast<size_t>(count));
  std::vector<int64_t> group_in(slots);
  Groups groups;
  groups.offsets.push_back(0);
  for (int64_t i = 0; i < count; ++i) {
    size_t slot = size_t((uint64_t(ids[i]) * 0x9E3779B97F4A7C15u) >> (64 - bits));
    while (first_row[slot] >= 0 && ids[first_row[slot]] != ids[i]) slot = (slot + 1) & (slots - 1);
    if (first_row[slot] < 0) {
      first_row[slot] = i;
      group_in[slot] = int64_t(groups.offsets.size()) - 1;
      groups.offsets.push_back(0);
    }
    number[size_t(i)] = group_in[slot];
    groups.offsets[size_t(group_in[slot]) + 1] += 1;
  }
  for (size_t g = 1; g < groups.offsets.size(); ++g) groups.offsets[g] += groups.offsets[g - 1];
  std::vector<int64_t> next(groups.offsets.begin(), groups.offsets.end() - 1);
  groups.rows.resize(static_cast<size_t>(count));
  for (int64_t i = 0; i < count; ++i) groups.rows[size_t(next[size_t(number[size_t(i)])]++)] = i;
  return groups;
}

double batch_std(const double* scores, int64_t count, const GroupRule& rule) {
  const auto counted = [&](double score) { return !(rule.ignore_nan && score != score); };
  double sum = 0.0, squares = 0.0;
  int64_t n = 0;
  for (int64_t i = 0; i < count; ++i) {
    if (counted(scores[i])) sum += scores[i], ++n;
  }
  if (n == 1) return 1.0;
  const double mean = sum / double(n);
  for (int64_t i = 0; i < count; ++i) {
    if (counted(scores[i])) squares += (scores[i] - mean) * (scores[i] - mean);
  }
  return std::sqrt(squares / double(n - rule.ddof));
}

void check_cu_seqlens(const int64_t* cu_seqlens, int64_t size, int64_t count) {
  const bool rises = size >= 1 && cu_seqlens[0] == 0 && cu_seqlens[size - 1] == count &&
                     std::is_sorted(cu_seqlens, cu_seqlens + size);
  if (rises) return;
  std::string text;
  for (int64_t i = 0; i < std::min<int64_t>(size, 8); ++i) {
    text += (i == 0 ? "" : ", ") + std::to_string(cu_seqlens[i]);
  }
  reject("cu_seqlens must rise from 0 to the number of places " + std::to_string(count) +
         ", got [" + text + (size > 8 ? ", ...]" : "]"));
}

void row_scores(const TokenRows<float>& tokens, double* scores, int64_t* lengths, int64_t begin,
                int64_t end) {
  ONESHOT_DISPATCH_ISA(row_scores, tokens, scores, lengths, begin, end);
}

void row_scores(const TokenRows<double>& tokens, double* scores, int64_t* lengths, int64_t begin,
                int64_t end) {
  ONESHOT_DISPATCH_ISA(row_scores, tokens, scores, lengths, begin, end);
}

void score_groups(const Groups& groups, const GroupRule& rule, double batch_std,
                  const int64_t* lengths, double* scores, int64_t begin, int64_t end) {
  const int64_t* rows = groups.rows.empty() ? nullptr : groups.rows.data();
  ONESHOT_DISPATCH_ISA(score_groups, groups.offsets.data(), rows, rule, batch_std, lengths, scores,
                       begin, end);
}

void write_rows(const TokenRows<float>& tokens, const double* advantages, int64_t begin,
                int64_t end) {
  ONESHOT_DISPATCH_ISA(write_rows, tokens, advantages, begin, end);
}

void write_rows(const TokenRows<double>& tokens, const double* advantages, int64_t begin,
                int64_t end) {
  ONESHOT_DISPATCH_ISA(write_rows, tokens, advantages, begin, end);
}

void gae(const GaeArgs<float>& args, int64_t begin, int64_t end) {
  ONESHOT_DISPATCH_ISA(gae, args, begin, end);
}

void gae(const GaeArgs<double>& args, int64_t begin, int64_t end) {
  ONESHOT_DISPATCH_ISA(gae, args, begin, end);
}

void whiten_reduce(const WhitenArgs<float>& args, int power, double center, WhitenPartial* partials,
                   int64_t block_begin, int64_t block_end) {
  ONESHOT_DISPATCH_ISA(whiten_reduce, args, power, center, partials, block_begin, block_end);
}

void whiten_reduce(const WhitenArgs<double>& args, int power, double center,
                   WhitenPartial* partials, int64_t block_begin, int64_t block_end) {
  ONESHOT_DISPATCH_ISA(whiten_reduce, args, power, center, partials, block_begin, block_end);
}

void whiten_write(const WhitenArgs<float>& args, double mean, double scale, int64_t block_begin,
                  int64_t block_end) {
  ONESHOT_DISPATCH_ISA(whiten_write, args, mean, scale, block_begin, block_end);
}

void whiten_write(const WhitenArgs<double>& args, double mean, double scale, int64_t block_begin,
                  int64_t block_end) {
  ONESHOT_DISPATCH_ISA(whiten_write, args, mean, scale, block_begin, block_end);
}

}  // namespace oneshot::cpu
