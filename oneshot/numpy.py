"""The CPU kernels on NumPy arrays, without a torch tensor in between (needs the native library)."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from oneshot._load import require_native

__all__ = ["whiten"]


def _same_shape(name: str, array: NDArray, other_name: str, other: NDArray) -> None:
    if array.shape != other.shape:
        raise ValueError(
            f"{name} must have the shape of {other_name} {list(other.shape)}, "
            f"got {list(array.shape)}"
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
    keep = None if mask is None else np.ascontiguousarray(mask, dtype=bool)
    if keep is not None:
        _same_shape("mask", keep, "values", dense)
    return require_native().whiten(dense, keep, shift_mean, eps)
