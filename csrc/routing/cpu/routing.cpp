#include "routing/cpu/routing.h"

#include <algorithm>
#include <stdexcept>
#include <string>
#include <type_traits>

#define ONESHOT_KERNEL_BODY "routing/cpu/routing.inc"
#include "cpu/foreach_isa.h"

namespace oneshot::cpu {

RowGroups group_rows(const int64_t* mixture_of, int64_t count, int64_t repeat, int64_t mixtures) {
  RowGroups groups;
  groups.offsets.assign(size_t(mixtures) + 1, 0);
  for (int64_t i = 0; i < count; ++i) {
    if (mixture_of[i] < 0 || mixture_of[i] >= mixtures) {
      throw std::invalid_argument("rows must lie in [0, " + std::to_string(mixtures) + "), got " +
                                  std::to_string(mixture_of[i]) + " at place " + std::to_string(i));
    }
    groups.offsets[size_t(mixture_of[i]) + 1] += repeat;
  }
  for (size_t u = 1; u < groups.offsets.size(); ++u) groups.offsets[u] += groups.offsets[u - 1];
  std::vector<int64_t> next(groups.offsets.begin(), groups.offsets.end() - 1);
  groups.rows.resize(size_t(count * repeat));
  for (int64_t i = 0; i < count; ++i) {
    int64_t& place = next[size_t(mixture_of[i])];
    for (int64_t t = 0; t < repeat; ++t) groups.rows[size_t(place++)] = i * repeat + t;
  }
  for (int64_t u = 0; u < mixtures; ++u) {
    const int64_t end = groups.offsets[size_t(u) + 1];
    for (int64_t begin = groups.offsets[size_t(u)]; begin < end; begin += kBlockRows) {
      groups.blocks.push_back({u, begin, std::min(begin + kBlockRows, end)});
    }
  }
  return groups;
}

void mix(const MixForward& args, int64_t item_begin, int64_t item_end) {
  ONESHOT_DISPATCH_ISA(mix_item_range, args, item_begin, item_end);
}

void mix_backward(const MixBackwardItems& args, int64_t item_begin, int64_t item_end) {
  ONESHOT_DISPATCH_ISA(mix_backward_item_range, args, item_begin, item_end);
}

void lora(const LoraForward& args, const RowGroups& groups, int64_t block_begin,
          int64_t block_end) {
  ONESHOT_DISPATCH_ISA(lora_blocks, args, groups.rows.data(), groups.blocks.data(), block_begin,
                       block_end);
}

bool even_mixtures(const RowGroups& groups, int64_t threads) {
  const auto mixtures = int64_t(groups.offsets.size()) - 1;
  const int64_t share = (mixtures + threads - 1) / threads;
  int64_t most = 0;
  for (int64_t u = 0; u < mixtures; u += share) {
    const int64_t end = std::min(u + share, mixtures);
    most = std::max(most, groups.offsets[size_t(end)] - groups.offsets[size_t(u)]);
  }
  return 4 * threads * most <= 5 * groups.offsets.back();
}

void lora_backward_mixtures(const LoraBackward& args, const RowGroups& groups,
                            int64_t mixture_begin, int64_t mixture_end) {
  const auto first_of = [&](int64_t mixture) {
    const auto before = [](const RowBlock& block, int64_t u) { return block.mixture < u; };
    const auto& blocks = groups.blocks;
    return std::lower_bound(blocks.begin(), blocks.end(), mixture, before) - blocks.begin();
  };
  const int64_t block_begin = first_of(mixture_begin), block_end = first_of(mixture_end);
  ONESHOT_DISPATCH_ISA(lora_backward_blocks, args, groups.rows.data(), groups.blocks.data(),
                       block_begin, block_end, mixture_begin, mixture_end);
}

void lora_backward_rows(const LoraBackward& args, const RowGroups& groups, int64_t block_begin,
                        int64_t block_end) {
  const int64_t none = 0;
  ONESHOT_DISPATCH_ISA(lora_backward_blocks, args, groups.rows.data(), groups.blocks.data(),
                       block_begin, block_end, none, none);
}

void lora_backward_spans(const LoraBackward& args, const RowGroups& groups, int64_t span_begin,
                         int64_t span_end) {
  ONESHOT_DISPATCH_ISA(lora_backward_span_range, args, groups.rows.data(), groups.offsets.data(),
                       span_begin, span_end);
}

}  // namespace oneshot::cpu
