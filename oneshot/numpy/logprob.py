"""NumPy faces of the `logprob` family."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from oneshot._load import require_native


def token_logprobs_and_entropy(
    logits: ArrayLike,
    targets: ArrayLike,
    *,
    temperature: float = 1.0,
    mask: ArrayLike | None = None,
    keep_mask: ArrayLike | None = None,
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """NumPy face of :func:`oneshot.ops.token_logprobs_and_entropy` (float32, one thread)."""
    dense = np.ascontiguousarray(logits, dtype=np.float32)
    ids = np.ascontiguousarray(targets)
    if dense.ndim < 1 or dense.shape[-1] < 1:
        raise ValueError(
            f"logits must have shape [..., vocabulary] with at least one token, got {dense.shape}"
        )
    if not np.issubdtype(ids.dtype, np.integer):
        raise TypeError(f"targets must be integers, got {ids.dtype}")
    if not (np.isfinite(temperature) and temperature > 0):
        raise ValueError(f"temperature must be positive and finite, got {temperature}")
    rows, vocab = dense.shape[:-1], dense.shape[-1]
    if ids.shape != rows and ids.shape[:-1] != rows:
        raise ValueError(
            f"targets must have the shape of the rows {list(rows)} or one more dimension, "
            f"got {list(ids.shape)}"
        )
    count = int(np.prod(rows, dtype=np.int64))
    each = 1 if ids.shape == rows else ids.shape[-1]
    keep = None
    if mask is not None:
        mask = np.ascontiguousarray(mask, dtype=bool)
        if mask.shape != rows:
            raise ValueError(f"mask must have shape {list(rows)}, got {list(mask.shape)}")
        mask = mask.reshape(count)
    if keep_mask is not None:
        keep = np.asarray(keep_mask, dtype=bool)
        keep = np.ascontiguousarray(np.broadcast_to(keep, dense.shape)).reshape(count, vocab)
    logprobs, entropy = require_native().token_logprobs_and_entropy(
        dense.reshape(count, vocab),
        ids.astype(np.int64, copy=False).reshape(count, each),
        mask,
        keep,
        float(temperature),
    )
    return logprobs.reshape(ids.shape), entropy.reshape(rows)
