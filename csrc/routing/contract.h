// Routed low-rank adapters on the CPU: torch-free contract on raw pointers. A mixture is stored as
// `rank` long vectors, [mixtures, rank, length], for the input side and the output side alike:
// every loop then runs along the features, which are adjacent in x, in the output and in the
// mixture.
//
// Kernels work on a range of independent tiles, blocks or spans; the drivers at the end put an op
// together from them, with any `parallel(begin, end, grain, body)` (see common/parallel.h).
// "Real" is float, or double where the dtype is float64.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "common/dtype.h"

namespace oneshot::cpu {

// ---- mixing: mixture[u] = sum over k of weights[u, h, k] * inventory[h, k], head after head

// An inventory [heads, skills, p, q], dense. Elements (i, j) of head h become
//   mixture[u, i, h * q + j]                 rank p, length heads * q   (the output side, B)
//   mixture[u, j, h * p + i]  if transposed  rank q, length heads * p   (the input side, A)
struct Inventory {
  DType dtype;
  const void* data;
  int64_t heads, skills, p, q;
  bool transposed;

  int64_t elements() const { return p * q; }  // of one head and skill
  int64_t rank() const { return transposed ? q : p; }
  int64_t length() const { return heads * (transposed ? p : q); }
};

// The elements of a head are cut into tiles; one work item is one tile of one head.
inline constexpr int64_t kMixTile = 512;
inline int64_t mix_tiles(const Inventory& inventory) {
  return (inventory.elements() + kMixTile - 1) / kMixTile;
}
inline int64_t mix_items(const Inventory& inventory) {
  return inventory.heads * mix_tiles(inventory);
}

struct MixForward {
  Inventory inventory;
  const void* weights;  // Real [mixtures, heads, skills]
  void* mixture;        // Real [mixtures, rank, length]
  int64_t mixtures;
};
void mix(const MixForward&, int64_t item_begin, int64_t item_end);

struct MixBackward {
  Inventory inventory;
  const void* weights;
  const void* grad_mixture;  // Real [mixtures, rank, length]
  void* grad_inventory;      // in the dtype of the inventory; nullptr: not wanted
  double* grad_weights;      // [items, mixtures, skills], one part an item; nullptr: not wanted
  int64_t mixtures;
};
void mix_backward(const MixBackward&, int64_t item_begin, int64_t item_end);

// ---- applying: y = base + scaling * (x A) B with the mixture (A, B) of each row

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

struct LoraShape {
  DType dtype;  // of x, base, y and their gradients
  int64_t mixtures, rank, d_in, d_out;
};

struct LoraForward {
  LoraShape shape;
  const void* x;     // [rows, d_in]
  const void* a;     // Real [mixtures, rank, d_in]
  const void* b;     // Real [mixtures, rank, d_out]
  const void* base;  // [rows, d_out], or nullptr: 0
  void* shrunk;      // Real [rows, rank]: scaling * x A
  void* y;           // [rows, d_out]
  double scaling;
};
// The result of a row depends on nothing but the row and its mixture, to the bit.
void lora(const LoraForward&, const RowGroups&, int64_t block_begin, int64_t block_end);

struct LoraBackward {
  LoraShape shape;
  const void* grad;    // [rows, d_out]
  const void* x;       // [rows, d_in]
  const void* a;       // Real [mixtures, rank, d_in]
  const void* b;       // Real [mixtures, rank, d_out]
  const void* shrunk;  // Real [rows, rank]
  void* grad_shrunk;   // Real [rows, rank]: scaling * grad B^T
  void* grad_x;        // [rows, d_in], or nullptr: not wanted
  void* grad_a;        // Real [mixtures, rank, d_in], or nullptr: not wanted
  void* grad_b;        // Real [mixtures, rank, d_out], or nullptr: not wanted
  double scaling;
};
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

// grad_weights: Real [mixtures, heads, skills], added to; or nullptr: not wanted.
template <typename Real, typename Parallel>
void mix_backward(MixBackward args, Real* grad_weights, const Parallel& parallel) {
  const int64_t tiles = mix_tiles(args.inventory), heads = args.inventory.heads;
  const int64_t skills = args.inventory.skills, cells = args.mixtures * skills;
  std::vector<double> parts(grad_weights ? size_t(mix_items(args.inventory) * cells) : 0);
  args.grad_weights = grad_weights ? parts.data() : nullptr;
  parallel(0, mix_items(args.inventory), 4,
           [&](int64_t begin, int64_t end) { mix_backward(args, begin, end); });
  if (!grad_weights) return;
  for (int64_t u = 0; u < args.mixtures; ++u) {
    for (int64_t h = 0; h < heads; ++h) {
      for (int64_t k = 0; k < skills; ++k) {
        double sum = 0.0;
        for (int64_t t = 0; t < tiles; ++t) {
          sum += parts[size_t((h * tiles + t) * cells + u * skills + k)];
        }
        grad_weights[(u * heads + h) * skills + k] += Real(sum);
      }
    }
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
