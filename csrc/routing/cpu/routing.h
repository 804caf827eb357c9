// Routed low-rank adapters on the CPU. Kernels work on a range of independent tiles, blocks or
// spans; the drivers at the end put an op together from them, with any `parallel(begin, end, grain,
// body)` (see common/parallel.h).
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "common/parallel.h"
#include "routing/contract.h"

namespace oneshot::cpu {

// ---- mixing

// The elements of a head are cut into tiles; one work item is one tile of one head.
inline constexpr int64_t kMixTile = 512;
inline int64_t mix_tiles(const Inventory& inventory) {
  return (inventory.elements() + kMixTile - 1) / kMixTile;
}
inline int64_t mix_items(const Inventory& inventory) {
  return inventory.heads * mix_tiles(inventory);
}
// Every element of a tile is multiplied by the weights of all mixtures.
inline int64_t mix_grain(const Inventory& inventory, int64_t mixtures) {
  return grain_of(kMixTile * inventory.skills * mixtures);
}

void mix(const MixForward&, int64_t item_begin, int64_t item_end);

struct MixBackwardItems {
  Inventory inventory;
  const void* weights;
  const void* grad_mixture;  // Real [mixtures, rank, length]
  void* grad_inventory;      // in the dtype of the inventory; nullptr: not wanted
  double* grad_weights;      // [items, mixtures, skills], one part an item; nullptr: not wanted
  int64_t mixtures;
};
void mix_backward(const MixBackwardItems&, int64_t item_begin, int64_t item_end);

// ---- applying

// Rows listed mixture by mixture, in row order inside a mixture, and cut into blocks of one
// mixture. Rows of a block share what they read of it; more of them leave threads idle in decoding.
inline constexpr int64_t kBlockRows = 32;
struct RowBlock {
  int64_t mixture, begin, end;  // of RowGroups::rows
};
struct RowGroups {
  std::vector<int64_t> rows;
  std::vector<int64_t> offsets;  // [mixtures + 1]
  std::vector<RowBlock> blocks;
};
// mixture_of[i] belongs to the `repeat` adjacent rows from i * repeat on. Throws
// std::invalid_argument unless every entry lies in [0, mixtures).
RowGroups group_rows(const int64_t* mixture_of, int64_t count, int64_t repeat, int64_t mixtures);

// The result of a row depends on nothing but the row and its mixture, to the bit.
void lora(const LoraForward&, const RowGroups&, int64_t block_begin, int64_t block_end);

// The sums over the rows of a mixture (grad_a, grad_b) run over its blocks in order, so that
// threads change no bit. Either a thread has whole mixtures, and adds up each block while it is
// near:
void lora_backward_mixtures(const LoraBackward&, const RowGroups&, int64_t mixture_begin,
                            int64_t mixture_end);
// or the threads share first the blocks (grad_shrunk, grad_x), then the sums: a span is some
// features of one mixture.
void lora_backward_rows(const LoraBackward&, const RowGroups&, int64_t block_begin,
                        int64_t block_end);
void lora_backward_spans(const LoraBackward&, const RowGroups&, int64_t span_begin,
                         int64_t span_end);
inline constexpr int64_t kSpan = 256;
inline int64_t lora_spans(const LoraShape& shape) {
  return shape.mixtures * ((shape.d_in + kSpan - 1) / kSpan + (shape.d_out + kSpan - 1) / kSpan);
}

// ---- drivers

template <typename Real>
void add_weight_parts(const MixBackward& args, const std::vector<double>& parts) {
  const int64_t tiles = mix_tiles(args.inventory), heads = args.inventory.heads;
  const int64_t skills = args.inventory.skills, cells = args.mixtures * skills;
  auto* grad_weights = static_cast<Real*>(args.grad_weights);
  for (int64_t u = 0; u < args.mixtures; ++u) {
    for (int64_t h = 0; h < heads; ++h) {
      for (int64_t k = 0; k < skills; ++k) {
        double sum = 0.0;
        for (int64_t t = 0; t < tiles; ++t) {
          sum += parts[size_t((h * tiles + t) * cells + u * skills + k)];
        }
        Real& to = grad_weights[(u * heads + h) * skills + k];
        to = args.add_weights ? to + Real(sum) : Real(sum);
      }
    }
  }
}

template <typename Parallel>
void mix_backward(const MixBackward& args, const Parallel& parallel) {
  const bool wanted = args.grad_weights != nullptr;
  const int64_t items = mix_items(args.inventory);
  std::vector<double> parts(wanted ? size_t(items * args.mixtures * args.inventory.skills) : 0);
  const MixBackwardItems each{args.inventory,
                              args.weights,
                              args.grad_mixture,
                              args.grad_inventory,
                              wanted ? parts.data() : nullptr,
                              args.mixtures};
  parallel(0, items, mix_grain(args.inventory, args.mixtures),
           [&](int64_t begin, int64_t end) { mix_backward(each, begin, end); });
  if (!wanted) return;
  if (args.inventory.dtype == DType::kFloat64) {
    add_weight_parts<double>(args, parts);
  } else {
    add_weight_parts<float>(args, parts);
  }
}

// Whether mixtures, in order and as many for each thread, are about as many rows for each.
bool even_mixtures(const RowGroups&, int64_t threads);

template <typename Parallel>
void lora_backward(const LoraBackward& args, const RowGroups& groups, int64_t threads,
                   const Parallel& parallel) {
  if (even_mixtures(groups, threads)) {
    return parallel(0, args.shape.mixtures, 1, [&](int64_t begin, int64_t end) {
      lora_backward_mixtures(args, groups, begin, end);
    });
  }
  parallel(0, int64_t(groups.blocks.size()), 1,
           [&](int64_t begin, int64_t end) { lora_backward_rows(args, groups, begin, end); });
  if (!args.grad_a && !args.grad_b) return;
  parallel(0, lora_spans(args.shape), 1,
           [&](int64_t begin, int64_t end) { lora_backward_spans(args, groups, begin, end); });
}

}  // namespace oneshot::cpu
