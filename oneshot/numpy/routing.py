"""NumPy faces of the `routing` family."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from oneshot._load import require_native
from oneshot.numpy import _arrays


def mix_adapters(
    inventory: ArrayLike, weights: ArrayLike, *, split_dim: int
) -> NDArray[np.float32]:
    """NumPy face of :func:`oneshot.ops.mix_adapters` (float32, one thread)."""
    skills = np.ascontiguousarray(inventory, dtype=np.float32)
    shares = np.ascontiguousarray(weights, dtype=np.float32)
    if skills.ndim not in (3, 4):
        raise ValueError(
            f"inventory must have shape [H, K, d] or [H, K, p, q], got {list(skills.shape)}"
        )
    allowed = (-1, -2) if skills.ndim == 4 else (-1,)
    if split_dim not in allowed:
        raise ValueError(
            f"split_dim must be one of {', '.join(map(str, allowed))}, got {split_dim}"
        )
    if shares.ndim != 3 or shares.shape[1:] != skills.shape[:2]:
        raise ValueError(
            f"weights must have the shape [mixtures, {skills.shape[0]}, {skills.shape[1]}] for "
            f"inventory {list(skills.shape)}, got {list(shares.shape)}"
        )
    mix = require_native().mix_adapters
    if skills.ndim == 3:
        return mix(skills[:, :, None], shares, False)[:, 0]
    mixed = mix(skills, shares, split_dim == -2)
    return mixed.transpose(0, 2, 1) if split_dim == -2 else mixed


def routed_lora(
    x: ArrayLike,
    lora_a: ArrayLike,
    lora_b: ArrayLike,
    rows: ArrayLike,
    *,
    scaling: float = 1.0,
    base: ArrayLike | None = None,
) -> NDArray[np.float32]:
    """NumPy face of :func:`oneshot.ops.routed_lora` with mixed adapters (float32, one thread).

    `x` is ``[N, d_in]`` and `rows` ``[N]``; the adapters come from :func:`mix_adapters`.
    """
    dense = np.ascontiguousarray(x, dtype=np.float32)
    mixed_a = np.asarray(lora_a, dtype=np.float32)
    mixed_b = np.ascontiguousarray(lora_b, dtype=np.float32)
    if mixed_a.ndim != 3 or mixed_b.ndim != 3 or mixed_a.shape[::2] != mixed_b.shape[:2]:
        raise ValueError(
            "lora_a must be mixed adapters [U, d_in, r] and lora_b [U, r, d_out], "
            f"got {list(mixed_a.shape)} and {list(mixed_b.shape)}"
        )
    if dense.ndim != 2 or dense.shape[1] != mixed_a.shape[1]:
        raise ValueError(f"x must have the shape [N, {mixed_a.shape[1]}], got {list(dense.shape)}")
    mixture_of = _arrays.integers("rows", rows, dense.shape[0])
    addend = None if base is None else np.ascontiguousarray(base, dtype=np.float32)
    if addend is not None and addend.shape != (dense.shape[0], mixed_b.shape[2]):
        raise ValueError(
            f"base must have the shape [{dense.shape[0]}, {mixed_b.shape[2]}], "
            f"got {list(addend.shape)}"
        )
    transposed = np.ascontiguousarray(mixed_a.transpose(0, 2, 1))
    return require_native().routed_lora(dense, transposed, mixed_b, mixture_of, addend, scaling)
