"""Checks that the NumPy faces share; each message names the argument and what came."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray


def same_shape(name: str, array: NDArray, other_name: str, other: NDArray) -> None:
    """Raise ValueError unless both arrays have one shape."""
    if array.shape != other.shape:
        raise ValueError(
            f"{name} must have the shape of {other_name} {list(other.shape)}, "
            f"got {list(array.shape)}"
        )


def integers(name: str, array: ArrayLike | None, size: int | None) -> NDArray[np.int64] | None:
    """One-dimensional int64; floating-point numbers are an error, not truncated."""
    if array is None:
        return None
    dense = np.asarray(array)
    if dense.size and not np.issubdtype(dense.dtype, np.integer):
        raise TypeError(f"{name} must be integers, got {dense.dtype}")
    if dense.ndim != 1 or (size is not None and dense.shape[0] != size):
        expected = "[any]" if size is None else f"[{size}]"
        raise ValueError(f"{name} must have the shape {expected}, got {list(dense.shape)}")
    return np.ascontiguousarray(dense, dtype=np.int64)


def mask(mask: ArrayLike | None, other_name: str, other: NDArray) -> NDArray[np.bool_] | None:
    """Dense bool of the shape of `other`, or None."""
    if mask is None:
        return None
    keep = np.ascontiguousarray(mask, dtype=bool)
    same_shape("mask", keep, other_name, other)
    return keep
