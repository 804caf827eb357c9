// Routed low-rank adapters: what the kernels of every device take, on raw pointers. A mixture is
// stored as `rank` long vectors, [mixtures, rank, length], for the input side and the output side
// alike: every loop then runs along the features, which are adjacent in x, in the output and in the
// mixture.
// "Real" is float, or double where the dtype is float64.
#pragma once

#include <cstdint>

#include "common/dtype.h"

namespace oneshot {

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

struct MixForward {
  Inventory inventory;
  const void* weights;  // Real [mixtures, heads, skills]
  void* mixture;        // Real [mixtures, rank, length]
  int64_t mixtures;
};

struct MixBackward {
  Inventory inventory;
  const void* weights;
  const void* grad_mixture;  // Real [mixtures, rank, length]
  void* grad_inventory;      // in the dtype of the inventory, or nullptr: not wanted
  void* grad_weights;        // Real [mixtures, heads, skills], or nullptr: not wanted
  bool add_weights;          // to what stands in grad_weights
  int64_t mixtures;
};

// ---- applying: y = base + scaling * (x A) B with the mixture (A, B) of each row

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
}  // namespace oneshot
