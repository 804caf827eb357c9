// Routed LoRA from mixtures [rank, features] of each task. Rows are taken in tiles of one mixture:
// kTileRows rows, or one row where there are few (decoding). Rows are listed by mixture only where
// adjacent rows do not share one anyway, and for the gradients of the mixtures.
#include "routing/cuda/parts.cuh"

namespace oneshot::cuda {
namespace {

constexpr int kFewRows = 256;  // up to here one row a block fills the device better than tiles

bool few(const RowMixtures& rows) { return rows.rows() <= kFewRows; }
bool needs_list(const RowMixtures& rows) { return !few(rows) && rows.repeat < kTileRows; }

size_t real_bytes(const LoraShape& shape) { return shape.dtype == DType::kFloat64 ? 8 : 4; }

RowTiles forward_tiles(const RowMixtures& rows, const RowList& list) {
  if (few(rows)) return tiles_inside_groups(rows, 1);
  return needs_list(rows) ? tiles_from(rows, list) : tiles_inside_groups(rows, kTileRows);
}

}  // namespace

int64_t lora_workspace(const LoraShape&, const RowMixtures& rows) {
  return needs_list(rows) ? list_rows_workspace(rows) : 0;
}

cudaError_t lora(const LoraForward& args, const RowMixtures& rows, void* workspace,
                 cudaStream_t stream) {
  RowList list{};
  if (needs_list(rows)) {
    ONESHOT_RETURN_IF_FAILED(list_rows(rows, workspace, list, stream));
  }
  const RowTiles tiles = forward_tiles(rows, list);
  const LoraShape& s = args.shape;
  return with_type(s.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    ONESHOT_RETURN_IF_FAILED(
        shrink<T>(tiles, args.x, args.a, args.shrunk, s.d_in, s.rank, args.scaling, stream));
    return expand<T>(tiles, args.shrunk, args.b, args.base, args.y, s.d_out, s.rank, stream);
  });
}

int64_t lora_backward_workspace(const LoraBackward& args, const RowMixtures& rows) {
  const bool outer = args.grad_a != nullptr || args.grad_b != nullptr;
  const LoraShape& s = args.shape;
  const int64_t parts = outer_parts(rows), widest = s.d_in > s.d_out ? s.d_in : s.d_out;
  const int64_t partial = parts * rows.mixtures * s.rank * widest * int64_t(real_bytes(s));
  // The partial sums first: they want the alignment of the allocation.
  return (outer && parts > 1 ? (partial + 15) / 16 * 16 : 0) +
         (outer || needs_list(rows) ? list_rows_workspace(rows) : 0);
}

cudaError_t lora_backward(const LoraBackward& args, const RowMixtures& rows, void* workspace,
                          cudaStream_t stream) {
  const bool outer_wanted = args.grad_a != nullptr || args.grad_b != nullptr;
  const LoraShape& s = args.shape;
  RowList list{};
  if (outer_wanted || needs_list(rows)) {
    const int64_t before = lora_backward_workspace(args, rows) - list_rows_workspace(rows);
    ONESHOT_RETURN_IF_FAILED(
        list_rows(rows, static_cast<unsigned char*>(workspace) + before, list, stream));
  }
  const RowTiles tiles = forward_tiles(rows, list);
  return with_type(s.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    ONESHOT_RETURN_IF_FAILED(shrink<T>(tiles, args.grad, args.b, args.grad_shrunk, s.d_out, s.rank,
                                       args.scaling, stream));
    if (args.grad_x != nullptr) {
      ONESHOT_RETURN_IF_FAILED(
          expand<T>(tiles, args.grad_shrunk, args.a, nullptr, args.grad_x, s.d_in, s.rank, stream));
    }
    if (args.grad_a != nullptr) {
      ONESHOT_RETURN_IF_FAILED(outer<T>(rows, list, args.grad_shrunk, args.x, workspace,
                                        args.grad_a, s.d_in, s.rank, stream));
    }
    if (args.grad_b == nullptr) return cudaSuccess;
    return outer<T>(rows, list, args.shrunk, args.grad, workspace, args.grad_b, s.d_out, s.rank,
                    stream);
  });
}

}  // namespace oneshot::cuda
