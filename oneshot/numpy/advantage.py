"""NumPy faces of the `advantage` family."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from oneshot._load import require_native
from oneshot.numpy import _arrays


def group_advantages(
    rewards: ArrayLike,
    groups: int | None = None,
    *,
    group_ids: ArrayLike | None = None,
    group_sizes: ArrayLike | None = None,
    mask: ArrayLike | None = None,
    lengths: ArrayLike | None = None,
    baseline: str = "mean",
    scale: str = "std",
    ddof: int = 1,
    eps: float = 1e-6,
    singleton: str = "raw",
    nan: str = "propagate",
) -> NDArray[np.float32]:
    """NumPy face of :func:`oneshot.ops.group_advantages` (float32)."""
    dense = np.ascontiguousarray(rewards, dtype=np.float32)
    if dense.ndim != (1 if mask is None else 2):
        expected = "[N] (or [N, T] with mask)" if mask is None else "[N, T] with mask"
        raise ValueError(f"rewards must have the shape {expected}, got {list(dense.shape)}")
    if (groups is None) + (group_ids is None) + (group_sizes is None) != 2:
        raise ValueError("give exactly one of groups, group_ids, group_sizes")
    rows = dense.shape[0]
    token_counts = _arrays.integers("lengths", lengths, rows)
    if baseline == "opo" and token_counts is None and mask is None:
        raise ValueError("lengths must be given for baseline='opo' with rewards [N], got None")
    ids = _arrays.integers("group_ids", group_ids, rows)
    sizes = _arrays.integers("group_sizes", group_sizes, None)
    return require_native().group_advantages(
        dense, _arrays.mask(mask, "rewards", dense), token_counts, 0 if groups is None else groups,
        ids, sizes, baseline, scale, ddof, eps, singleton, nan,
    )  # fmt: skip


def gae(
    rewards: ArrayLike,
    values: ArrayLike,
    mask: ArrayLike | None = None,
    gamma: float = 1.0,
    lam: float = 1.0,
    *,
    bootstrap: ArrayLike | None = None,
    cu_seqlens: ArrayLike | None = None,
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """NumPy face of :func:`oneshot.ops.gae` (float32)."""
    dense, states = np.asarray(rewards, np.float32), np.asarray(values, np.float32)
    dims, layout = (2, "[B, T]") if cu_seqlens is None else (1, "[N] with cu_seqlens")
    if dense.ndim != dims:
        raise ValueError(f"rewards must have the shape {layout}, got {list(dense.shape)}")
    offsets = _arrays.integers("cu_seqlens", cu_seqlens, None)
    if dims == 2 and states.ndim == 2 and states.shape[1] == dense.shape[1] + 1:
        if bootstrap is not None:
            raise ValueError("bootstrap must be None when values has the shape [B, T + 1]")
        states, bootstrap = states[:, :-1], states[:, -1]
    _arrays.same_shape("values", states, "rewards", dense)
    last = None if bootstrap is None else np.ascontiguousarray(bootstrap, np.float32)
    sequences = dense.shape[0] if offsets is None else len(offsets) - 1
    if last is not None and last.shape != (sequences,):
        raise ValueError(f"bootstrap must have the shape [{sequences}], got {list(last.shape)}")
    return require_native().gae(
        dense, states, _arrays.mask(mask, "rewards", dense), last, offsets, gamma, lam
    )


def whiten(
    values: ArrayLike,
    mask: ArrayLike | None = None,
    *,
    shift_mean: bool = True,
    eps: float = 1e-8,
) -> NDArray[np.float32]:
    """NumPy face of :func:`oneshot.ops.whiten` (float32)."""
    dense = np.ascontiguousarray(values, dtype=np.float32)
    return require_native().whiten(dense, _arrays.mask(mask, "values", dense), shift_mean, eps)
